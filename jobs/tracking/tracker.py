"""What every tracker is told of a run, and from where on it does not know the run's records yet."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TrackedRun(NamedTuple):
    """A run as a tracker should show it."""

    id: str
    """The same for a run and all copies of it."""
    name: str
    group: str
    """The sweep that it is a trial of; "" if it is none."""
    config: Mapping[str, Any]
    """By dotted name."""


class Tracker(Protocol):
    """One run in a tracker; what is told twice must have been told twice by whoever calls."""

    def log(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Take metrics of a step, in the order of steps; `time_s` is when they were measured, since 1970."""

    def add(self, folder: Path) -> None:
        """Keep the files of a folder with the run."""

    def flush(self) -> None:
        """Return once all that was told is kept."""

    def end(self, state: str) -> None:
        """Take how the run ended: finished, stopped or diverged; or unfinished, if only telling ends."""


class Position(NamedTuple):
    """How far a run was told: up to the metrics `names` of a step, and all before it."""

    step: int = -1
    names: tuple[str, ...] = ()


def untold(
    records: Iterable[Mapping[str, Any]], position: Position
) -> Iterator[tuple[int, float, dict[str, float], Position]]:
    """Yield step, time and finite metrics of each record that was not told, and the position behind it.

    A run that lost work does it again and writes records of steps that were told: these are left out, so that no step
    is told twice.
    """
    for record in records:
        step = record["step"]
        known = position.names if step == position.step else ()
        values = {n: v for n, v in record.items() if isinstance(v, int | float) and n not in ("step", "time_s", *known)}
        if step < position.step or not values:
            continue
        position = Position(step, (*known, *values))
        yield step, float(record.get("time_s", 0.0)), values, position
