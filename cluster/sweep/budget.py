"""The time that a sweep may take in all, over every command that went on with it."""

import contextlib
import time
from pathlib import Path
from typing import Any

from cluster.demand import Say
from cluster.sweep.record import read_tree
from zfdist import atomic_io
from zfdist.run_protocol import STOP

FILE = "spent.json"
_WRITE_EVERY_S = 10.0


def spent_s(folder: Path) -> float:
    """Return the seconds for which drivers of a sweep have run, as far as they came to write it down."""
    told: Any = (read_tree(folder / FILE) or {}).get("spent_s")
    return float(told) if isinstance(told, int | float) else 0.0


class Budget:
    """Counts the time that is spent within the block, and asks the sweep to save and end once it is used up."""

    def __init__(self, folder: Path, most_s: float | None, elsewhere_s: float = 0.0) -> None:
        """Count for the sweep in `folder`; `elsewhere_s` of the same budget were spent by other parts of it."""
        self._folder, self._most_s, self._elsewhere_s = folder, most_s, elsewhere_s
        self._before_s, self._is_told = spent_s(folder), False

    def __enter__(self) -> "Budget":
        self._since_s = self._written_s = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def look(self, say: Say) -> None:
        """Note the time; called about once a second."""
        now_s = time.monotonic()
        if now_s - self._written_s > _WRITE_EVERY_S:
            self._written_s = now_s
            self._write()
        if self._most_s is None or self._is_told or self._elsewhere_s + self._spent_s() < self._most_s:
            return
        self._is_told = True
        say(f"the time budget of {self._most_s:.0f} s is spent: all trials save and stop; a larger one goes on")
        (self._folder / STOP).touch()

    def _spent_s(self) -> float:
        return self._before_s + time.monotonic() - self._since_s

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is told by whoever cannot do without it
            atomic_io.write_json(self._folder / FILE, {"spent_s": round(self._spent_s(), 1)})
