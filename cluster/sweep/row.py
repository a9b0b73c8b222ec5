"""What is known of one trial of a sweep, as its folder tells it and as it changes while the sweep runs."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.sweep import journal
from cluster.sweep.goal import Goal
from cluster.sweep.journal import Event
from cluster.sweep.record import mark, state
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.search_space import Trial
from cluster.sweep.suggest import Known
from zfdist.run_protocol import RESULT, STOP


@dataclass
class Row:
    """What is known of a trial while the sweep runs."""

    trial: Trial
    folder: Path
    state: str = "waiting"
    events: list[Event] = field(default_factory=list)
    """Its validations so far, as far as they were decided on."""
    error: str | None = None
    """Why it failed."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Of the sampler that suggested it."""
    running_since_s: float | None = None

    @property
    def step(self) -> int:
        """Of the last validation."""
        return self.events[-1].step if self.events else 0

    @property
    def latest(self) -> dict[str, float]:
        """Metrics of the last validation."""
        return self.events[-1].metrics if self.events else {}

    def read(self) -> None:
        """Take state and events from the trial's folder."""
        self.state = state(self.folder) or "waiting"
        self.events = journal.read(self.folder, self.trial.id)

    def known(self, goal: Goal) -> Known:
        """Return what a search may know of it."""
        best = goal.best([event.result for event in self.events])
        if self.state in ("waiting", "running"):
            return Known(self.trial.values, "running", notes=self.notes)
        if best is None or self.state not in ("finished", "stopped"):
            return Known(self.trial.values, "failed", notes=self.notes)
        told: Literal["complete", "pruned"] = "complete" if self.state == "finished" else "pruned"
        return Known(self.trial.values, told, self.step, goal.values(best), goal.misses(best), self.notes)


def stop(row: Row, store: SweepStore | None) -> None:
    """Mark a trial as stopped early, and make its run end if it has one."""
    mark(row.folder, state="stopped", step=row.step, **row.latest)
    if store is not None:
        store.send(row.trial.id, RESULT)
    with contextlib.suppress(OSError):
        (row.folder / STOP).touch()
    row.state = "stopped"
