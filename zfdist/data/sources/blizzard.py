"""Blizzard 2013 by the published row split: a long recording cut into streams, and the rows of the streams into splits.

The published preparation (of the VRNN, used by all papers since) joins the chapters of a group of 200 in a given order,
cuts the whole into 128 streams of equal length, and writes rows of 8,000 samples, time by time: of a group whose first
row is R, row R + 128 i + j holds samples 8,000 i .. 8,000 (i + 1) of stream j. Rows below 2,040,064 are training, those
below 2,152,704 validation, those below 2,266,880 the test.

Here a recording is a stream's part in a split, so that a segment of 40 frames of 200 samples is a row, and the target
of its last frame is the first frame of the next row of the same stream. (The code released with the paper took the next
row of the file instead, which is the neighbouring stream.) The last row of a stream in a split has no next row in it
and scores one frame fewer: no sample is in two splits.

Unlike the published preparation, channels are averaged, and sound is resampled by our own filter.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zfdist import atomic_io
from zfdist.data.manifest import SPLITS
from zfdist.data.sources import audio
from zfdist.data.sources.convert import (
    Outcome,
    PlannedShard,
    Progress,
    Report,
    convert,
    existing,
    json_sha256,
    licence_beside,
    silent,
    too_many_bad,
)
from zfdist.data.sources.inputs import Input, Listing, SourceError, list_inputs
from zfdist.data.sources.lists import lines_of_list, resolved
from zfdist.data.sources.speech import Options, described, listed
from zfdist.data.store_writer import UNFINISHED, Recording

VERSION = 1
ROW_SAMPLES = 8000


@dataclass(frozen=True, kw_only=True)
class Rows(Options):
    """What to convert and how; the options of the base that find splits are not used."""

    order_list: Path
    """File that fixes the order: a path under the source on each line."""
    group_files: int = 200
    """Files that are joined; an empty line in the list ends a group early."""
    streams: int = 128
    valid_row: int = 2_040_064
    test_row: int = 2_152_704
    end_row: int = 2_266_880

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        super().__post_init__()
        if self.max_bad:
            raise SourceError("--max-bad: must be 0 for --split rows, as a file left out would move all rows after it")
        for name in ("group_files", "streams"):
            if getattr(self, name) < 1:
                raise SourceError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not 0 < self.valid_row < self.test_row < self.end_row:
            raise SourceError(
                f"--valid-row {self.valid_row}, --test-row {self.test_row} and --end-row {self.end_row}: must rise"
            )
        for name in ("valid_row", "test_row", "end_row"):
            if getattr(self, name) % self.streams:
                raise SourceError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be a multiple of --streams {self.streams}"
                )


def prepare(options: Rows, out: Path, progress: Progress = silent) -> Outcome:
    """Convert the files of the order list to a store in folder `out` by the row split.

    Needs room on disk for a group as int16 besides the store; memory is bounded. Raises SourceError if files are
    missing, cannot be read (a missing one would move all rows after it), or give too few rows.
    """
    listing = list_inputs(options.source)
    groups = _groups(options, listing)
    inputs = [item for group in groups for item in group]
    boundaries = {name: getattr(options, name) for name in ("streams", "valid_row", "test_row", "end_row")}
    order = json_sha256([[item.name for item in group] for group in groups])
    source: dict[str, Any] = {
        "converter": "blizzard",
        "version": VERSION,
        "split": {"rule": "rows", "row_samples": ROW_SAMPLES, **boundaries, "groups": len(groups), "order": order},
        **described(options, inputs),
    }
    remarks = listing.remarks({"not in the order list": len(listing.inputs) - len(inputs)})
    outcome = existing(out, source)
    if outcome is not None:
        return replace(outcome, remarks=remarks)
    doubtful: dict[str, str] = {}
    outcome = convert(
        out,
        _plan(options, out, groups, progress, doubtful),
        source=source,
        licence=options.licence or licence_beside(options.source),
        total=options.end_row * ROW_SAMPLES,
        progress=progress,
        sample_rate=options.sample_rate,
        doubtful=doubtful,
    )
    return replace(outcome, remarks=remarks)


def _groups(options: Rows, listing: Listing) -> list[list[Input]]:
    """Read the order list: groups of files in order; raises SourceError for a file that is missing or comes twice."""
    known = {item.name: item for item in listing.inputs}
    groups: list[list[Input]] = [[]]
    seen: dict[str, int] = {}
    for number, text in enumerate(lines_of_list(options.order_list, "--order-list"), start=1):
        where = f"--order-list {options.order_list}, line {number}: {text!r}"
        line = resolved(text, options.source, known)
        if text.startswith("#"):
            continue
        if groups[-1] and (not line or len(groups[-1]) == options.group_files):
            groups.append([])
        if not line:
            continue
        if line in seen:
            raise SourceError(f"{where} is also on line {seen[line]}; remove one of them")
        if line not in known:
            raise SourceError(f"{where} is no audio file under {options.source}")
        seen[line] = number
        groups[-1].append(known[line])
    if not groups[0]:
        raise SourceError(f"--order-list {options.order_list}: names no file")
    return [group for group in groups if group]


def _plan(
    options: Rows, out: Path, groups: list[list[Input]], progress: Progress, doubtful: dict[str, str]
) -> Iterator[PlannedShard]:
    """Yield the shards of a group after the other; a group is decoded when its length or samples are wanted first.

    What is to be said of files that were read goes into `doubtful`.
    """
    row = 0
    bad: dict[str, str] = {}
    for number, items in enumerate(groups):
        group = _Group(options, out, number, items)
        samples = group.samples(
            lambda name, start=row: progress(start * ROW_SAMPLES, options.end_row * ROW_SAMPLES, name)
        )
        bad |= group.bad
        doubtful |= group.doubtful
        if not bad:
            yield from _shards(options, group, samples, row)
        row += max(0, (samples // options.streams - 1) // ROW_SAMPLES) * options.streams
        group.remove()
    if bad:
        raise SourceError(too_many_bad(bad, 0))
    if row < options.end_row:
        raise SourceError(
            f"the files of --order-list give {row:,} rows of {ROW_SAMPLES:,} samples, and --end-row is "
            f"{options.end_row:,}: the published boundaries hold for the whole of the published set; give --valid-row, "
            f"--test-row and --end-row (multiples of {options.streams}) for another"
        )


class _Group:
    """Files joined to one recording, kept as raw int16 on disk while its shards are made."""

    def __init__(self, options: Rows, out: Path, number: int, items: list[Input]) -> None:
        self.number = number
        self.key = json_sha256([VERSION, options.sample_rate, [listed(item) for item in items]])
        self.bad: dict[str, str] = {}
        self.doubtful: dict[str, str] = {}
        self._options = options
        self._items = items
        self._raw = out / UNFINISHED / f"group-{number:05d}.pcm"
        self._length = out / UNFINISHED / f"group-{number:05d}.json"

    def samples(self, report: Any) -> int:
        """Return how many samples the group has; known from an earlier run, or by decoding it."""
        self.remove()  # an earlier run may have left the sound of other files
        try:
            known = json.loads(self._length.read_bytes())
            if known["key"] == self.key:
                self.doubtful = dict(known["doubtful"])
                return int(known["samples"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._decode(report)
        total = self._raw.stat().st_size // 2
        if not self.bad:
            atomic_io.write(self._length, json.dumps({"key": self.key, "samples": total, "doubtful": self.doubtful}))
        return total

    def window(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Return samples start .. stop - 1."""
        if not self._raw.exists():
            self._decode(lambda name: None)
        with self._raw.open("rb") as file:
            file.seek(2 * start)
            return np.fromfile(file, np.int16, stop - start)

    def remove(self) -> None:
        """Remove the raw samples."""
        self._raw.unlink(missing_ok=True)

    def _decode(self, report: Any) -> None:
        with atomic_io.replacing(self._raw) as fresh, fresh.open("wb") as sink:
            for item in self._items:
                report(item.name)
                said: list[str] = []
                try:
                    audio.read(self._options.source / item.name, self._options.sample_rate, said).tofile(sink)
                except audio.AudioError as error:
                    self.bad[item.name] = str(error)
                if said:
                    self.doubtful[item.name] = "; ".join(said)


def _shards(options: Rows, group: _Group, samples: int, first_row: int) -> Iterator[PlannedShard]:
    """Yield the shards of a group that begins at row `first_row`: streams in order, about `shard_mb` a shard."""
    streams, stream_samples = options.streams, samples // options.streams
    chunks = max(0, (stream_samples - 1) // ROW_SAMPLES)  # the published rule, which wants a sample after the last row
    edges = [0, options.valid_row, options.test_row, options.end_row]
    for split, low, high in zip(SPLITS, edges[:-1], edges[1:], strict=True):
        begin, end = (min(max(0, (edge - first_row) // streams), chunks) for edge in (low, high))
        if begin == end:
            continue
        at_once = max(1, options.shard_mb * (1 << 20) // (2 * ROW_SAMPLES * (end - begin)))
        for part, first in enumerate(range(0, streams, at_once)):
            chosen = range(first, min(first + at_once, streams))

            def recordings(
                notes: dict[str, str], report: Report, chosen: range = chosen, begin: int = begin, end: int = end
            ) -> Iterator[Recording]:
                for done, j in enumerate(chosen):
                    name = f"group-{group.number:05d}/stream-{j:03d}/rows-{begin}-{end}"
                    start = j * stream_samples
                    yield Recording(name, group.window(start + begin * ROW_SAMPLES, start + end * ROW_SAMPLES))
                    report((done + 1) * (end - begin) * ROW_SAMPLES, name)

            key = json_sha256([VERSION, group.key, streams, chosen.start, chosen.stop, begin, end])
            label = f"{split}-{group.number:05d}-{part:03d}"
            yield PlannedShard(split, label, key, len(chosen) * (end - begin) * ROW_SAMPLES, recordings)
