"""What is known of the trials of a sweep while they run, and how many of them may run at a time."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import BasicVariantGenerator

from cluster import nodes
from cluster.demand import Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import root_message
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.search_space import Trial
from cluster.sweep.trial import NO_ROOM, mark, state
from zfdist.run_protocol import STOP

_LOOK_S = 1.0


@dataclass
class Row:
    """What is known of a trial while the sweep runs."""

    trial: Trial
    folder: Path
    state: str = "waiting"
    step: int = 0
    latest: dict[str, Any] | None = None


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
        search: BasicVariantGenerator,
        crowd: Crowd,
    ) -> None:
        self._rows = rows
        self._store = store
        self._sweep_stop = sweep_stop
        self._search, self._crowd = search, crowd
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
            self._search.max_concurrent = self._crowd.limit()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, or gives its history again."""
        row = self._row(trial)
        if row.state == "waiting":
            row.state = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a validation; or a full disk, on which no trial gets further: all are asked to stop."""
        if NO_ROOM in result and self.no_room is None:
            self.no_room = f"trial {self._row(trial).trial.id}: {result[NO_ROOM]}"
            with contextlib.suppress(OSError):  # each trial that goes on finds the same
                self._sweep_stop.touch()
        if "step" in result:
            row = self._row(trial)
            row.step = int(result["step"])
            row.latest = {name: value for name, value in result.items() if name.startswith("valid/")}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial that the scheduler stopped, and make its run end at once."""
        row = self._row(trial)
        if self._store is not None:
            self._store.fetch([row.trial.id])
        ended = state(row.folder)
        if ended is None and not self._sweep_stop.exists() and self.no_room is None:
            mark(row.folder, state="stopped", step=row.step, **(row.latest or {}))
            if self._store is not None:
                self._store.send_mark(row.trial.id)
            with contextlib.suppress(OSError):
                (row.folder / STOP).touch()
            ended = "stopped"
        row.state = ended or "waiting"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a failure that came back each time."""
        row = self._row(trial)
        row.state = "failed"
        row.latest = {"error": root_message(trial.get_pickled_error())}

    def _row(self, trial: Any) -> Row:
        return self._rows[trial.config["job"]["id"]]
