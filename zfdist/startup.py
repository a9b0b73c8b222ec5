"""Where the time goes from a command to its first optimizer step: a line in the run's log for every launch."""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

from zfdist.errors import ZfdistError


class Phase(NamedTuple):
    """Part of a start, which lasted from the end of the one before."""

    name: str
    end_s: float
    """Seconds since 1970, by the clock of the machine that it ended on."""


_PREFIX = "first step after "
_phases: list[Phase] = []


def begin(earlier: Sequence[Phase]) -> None:
    """Begin a start in this process, with the phases that ended in others; the first only says when it began."""
    _phases[:] = earlier


def ended(name: str) -> None:
    """Note that a phase has ended; nothing of a process that starts no run, or has started it."""
    if _phases:
        _phases.append(Phase(name, time.time()))


def so_far() -> tuple[Phase, ...]:
    """Return the phases that have ended."""
    return tuple(_phases)


def described() -> str | None:
    """Return e.g. "first step after 9.5 s: command 1.2, imports 3.1, ..." once, at the end of a start; else None."""
    if not _phases:
        return None
    seconds = [(later.name, later.end_s - phase.end_s) for phase, later in itertools.pairwise(_phases)]
    total_s = _phases[-1].end_s - _phases[0].end_s
    _phases.clear()
    return f"{_PREFIX}{total_s:.2f} s: " + ", ".join(f"{name} {lasted_s:.2f}" for name, lasted_s in seconds)


def read(log: str) -> list[dict[str, float]]:
    """Return the seconds of each phase of every launch that a log tells of.

    Raises:
        ZfdistError: if there is none.
    """
    lines = [line.split(" s: ", 1)[1] for line in log.splitlines() if line.startswith(_PREFIX)]
    if not lines:
        raise ZfdistError("the run's log tells of no first step")
    return [{part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in line.split(", ")} for line in lines]


def begin_with_process(first: str) -> None:
    """Begin a start at the time at which this process was made; its first phase ends now."""
    import psutil  # comes with Ray and DeepSpeed

    begin([Phase("", psutil.Process().create_time())])
    ended(first)


def tell(last: str, *, says: bool) -> None:
    """Note that the last phase has ended; the process that `says` so prints a line the first time."""
    ended(last)
    line = described()
    if says and line is not None:
        print(line, flush=True)
