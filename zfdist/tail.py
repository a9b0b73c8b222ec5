"""Read what a run writes while it runs: its metrics, and what its workers have to say."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zfdist import run_protocol
from zfdist.run_protocol import LOG, METRICS


class Lines:
    """The whole lines that were appended to a file since the last look; the file may be absent or be replaced."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None
        self.replacements = 0
        if not from_start and path.exists():
            stat = path.stat()
            self._offset, self._inode = stat.st_size, stat.st_ino

    def new(self) -> Iterator[bytes]:
        """Yield new lines; after a replacement of the file, from its beginning."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._offset, self._inode = 0, stat.st_ino
                self.replacements += 1
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._offset += len(line)
                yield line


class Records:
    """The records of a `metrics.jsonl` that were written since the last look.

    A run that goes on from a checkpoint rewrites the file without the lines after it; no line is given twice. Lines
    that are no records are passed over, as by `run_protocol.records`; of those written from now on, `say` hears once.
    """

    def __init__(self, path: Path, *, from_start: bool, say: Callable[[str], None] = run_protocol.say_beside) -> None:
        self._path = path
        self._say: Callable[[str], None] | None = None
        self._lines = Lines(path, from_start=True)
        self._replacements = 0
        self._floor_s = self._last_s = float("-inf")
        if not from_start:
            for _ in self.new():
                pass
        self._say = say

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield new records in order."""
        bad = 0
        for line in self._lines.new():
            if self._lines.replacements != self._replacements:
                self._replacements = self._lines.replacements
                self._floor_s = self._last_s  # what the new file repeats was written by then
            record = run_protocol.record_of(line)
            if record is None:
                bad += 1
            elif record.get("time_s", self._floor_s) > self._floor_s:
                self._last_s = record["time_s"]
                yield record
        if bad and self._say is not None:
            self._say(run_protocol.passed_over(self._path, bad))
            self._say = None


def follower(
    run_folder: Path, say: Callable[[str], None], on_report: Callable[[dict[str, Any]], None] | None
) -> Callable[[], None]:
    """Return what passes on, at each call, the lines of a run's log and its records that were written since the last.

    Args:
        run_folder: of the run; what is there already is not passed on.
        say: takes a line of the log.
        on_report: takes a record of metrics.jsonl.
    """
    records, lines = Records(run_folder / METRICS, from_start=False), Lines(run_folder / LOG, from_start=False)

    def follow() -> None:
        for line in lines.new():
            say(line.decode(errors="replace").rstrip("\n"))
        for record in records.new():
            if on_report:
                on_report(record)

    return follow
