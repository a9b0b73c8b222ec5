"""What is known of the trials of a sweep while they run, and how many of them may run at a time."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from cluster import nodes
from cluster.demand import Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import root_message
from cluster.sweep.record import state
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.row import Row, stop
from cluster.sweep.trial import NO_ROOM

_LOOK_S = 1.0


class Crowd:
    """How many trials may be under way at a time: as many as the cluster has room for, or may get, at that time.

    Args:
        workers: of each trial.
        most: trials at a time; None for as many as fit.
        resources: of each worker.
        supply: what may come.
    """

    def __init__(self, workers: int, most: int | None, resources: WorkerResources, supply: Supply) -> None:
        self._workers, self._most, self._resources, self._supply = workers, most, resources, supply

    def limit(self) -> int:
        """Return the number now."""
        there = nodes.staying(nodes.alive())
        room = nodes.room_for(there, self._resources) + self._supply.coming(there).room_for(self._resources)
        at_once = max(1, room // self._workers)
        return min(at_once, self._most or at_once)

    def wanted(self, rows: Iterable[Row]) -> int:
        """Return how many workers the trials that are not over could use at a time."""
        return self._workers * min(self.limit(), sum(row.state in ("waiting", "running") for row in rows))


class Watch(tune.Callback):  # type: ignore[misc]
    """Sees in the driver what becomes of trials: keeps the rows, and ends those that the scheduler stopped.

    It also lets as many trials begin as the cluster has room for by now.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        sweep_stop: Path,
        store: SweepStore | None,
        set_limit: Callable[[int], None],
        crowd: Crowd,
    ) -> None:
        self._rows = rows
        self._store = store
        self._sweep_stop = sweep_stop
        self._set_limit, self._crowd = set_limit, crowd
        self._next_look_s = 0.0
        self.no_room: str | None = None
        """What the first trial said that found a disk full."""

    def __getstate__(self) -> dict[str, Any]:
        """Be nothing in the snapshot that Tune makes of itself, which nobody reads."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Follow the cluster."""
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + _LOOK_S
            self._set_limit(self._crowd.limit())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, or gives its history again."""
        row = self._row(trial)
        if row.state == "waiting":
            row.state, row.running_since_s = "running", time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a full disk, on which no trial gets further: all are asked to stop."""
        if NO_ROOM in result and self.no_room is None:
            self.no_room = f"trial {self._row(trial).trial.id}: {result[NO_ROOM]}"
            with contextlib.suppress(OSError):  # each trial that goes on finds the same
                self._sweep_stop.touch()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial that the scheduler stopped, and make its run end at once."""
        row = self._row(trial)
        if self._store is not None:
            self._store.fetch([row.trial.id])
        if state(row.folder) is None and not self._sweep_stop.exists() and self.no_room is None:
            stop(row, self._store)
        row.state = state(row.folder) or "waiting"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a failure that came back each time."""
        row = self._row(trial)
        row.state = "failed"
        row.error = root_message(trial.get_pickled_error())

    def _row(self, trial: Any) -> Row:
        return self._rows[trial.config["job"]["id"]]
