"""Who stops trials early: Ray Tune's stock schedulers, told of validations in an order that is written down.

`Journaled` stands between Tune and a scheduler. It writes each decision into the trial's folder before Tune acts on it,
and begins by telling a fresh scheduler all that was decided before: nothing is decided twice.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cluster.sweep import journal
from cluster.sweep.goal import Goal
from cluster.sweep.journal import Decision, Event
from cluster.sweep.plan import Stopping
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.row import Row
from zfdist.config import Config

_BRACKETS = 3


class Named(NamedTuple):
    """All that a scheduler knows of a trial."""

    trial_id: str


def stock(stopping: Stopping, goal: Goal, base: Config) -> TrialScheduler:
    """Return a fresh scheduler."""
    grace, steps, objective, rule = stopping.grace(base), base.train.steps, goal.first, stopping.rule(goal)
    if rule == "none":
        return FIFOScheduler()
    if rule == "median":
        # It would pause trials for others, which costs a start: never, with such a time slice.
        return MedianStoppingRule(
            time_attr="step", grace_period=grace, min_time_slice=math.inf, metric=objective.metric, mode=objective.mode
        )
    brackets = [
        ASHAScheduler(
            time_attr="step",
            metric=objective.metric,
            mode=objective.mode,
            grace_period=min(grace * stopping.reduction_factor**i, steps),
            max_t=steps + 1,  # the last validation ends a trial by itself
            reduction_factor=stopping.reduction_factor,
        )
        for i in range(_BRACKETS if rule == "hyperband" else 1)
    ]
    return brackets[0] if len(brackets) == 1 else Brackets(brackets)


class Brackets(FIFOScheduler):  # type: ignore[misc]
    """HyperBand without waiting (Li et al., 2020, section 3.3): halvings that begin later and later, trials in turn.

    Tune's own draws a trial's bracket from numpy's global state; here it follows from the trial's number.
    """

    def __init__(self, brackets: Sequence[ASHAScheduler]) -> None:
        super().__init__()
        self._brackets = brackets

    def _of(self, trial: Any) -> ASHAScheduler:
        return self._brackets[int(trial.trial_id) % len(self._brackets)]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on to the trial's bracket."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass it on to the trial's bracket."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass it on to the trial's bracket."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)


class Judge:
    """A scheduler that is told of validations by the trials' own ids; the same events make the same judge."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self._known: set[str] = set()

    def decide(self, trial: str, result: Mapping[str, float], *, is_last: bool) -> Decision:
        """Take a validation; return what becomes of its trial."""
        named = Named(trial)
        if trial not in self._known:
            self._known.add(trial)
            self._scheduler.on_trial_add(None, named)
        if is_last:
            self._scheduler.on_trial_complete(None, named, dict(result))
            return "END"
        stops = self._scheduler.on_trial_result(None, named, dict(result)) == TrialScheduler.STOP
        return "STOP" if stops else "CONTINUE"

    def replay(self, events: Sequence[Event]) -> None:
        """Take what was decided before, in its order."""
        for event in events:
            self.decide(event.trial, event.result, is_last=event.decision == "END")


class Journaled(FIFOScheduler):  # type: ignore[misc]
    """What Tune asks: a judge whose every decision is in the trial's folder before it is acted upon.

    Args:
        judge: told of all that is in the rows' journals.
        order: of the next event.
        rows: of all trials by their ids; a row's events grow here.
        store: where the sweep lives if not in a folder; it is sent what is decided.
    """

    def __init__(self, judge: Judge, order: int, rows: Mapping[str, Row], store: SweepStore | None) -> None:
        super().__init__()
        self._judge, self._rows, self._order, self._store = judge, rows, order, store

    def __getstate__(self) -> dict[str, Any]:
        """Be nothing in the snapshot that Tune makes of itself, which nobody reads."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        decision = self._decided(trial, result, is_last=False)
        return str(TrialScheduler.STOP if decision == "STOP" else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last validation of a trial that ends by itself."""
        self._decided(trial, result, is_last=True)

    def _decided(self, trial: Any, result: dict[str, Any], *, is_last: bool) -> Decision | None:
        row = self._rows[trial.config["job"]["id"]]
        metrics = journal.validation_of(result)
        if "step" not in result or not metrics or result["step"] <= row.step:
            return None  # an end without a validation, or what a trial that failed gives again
        step = int(result["step"])
        decision = self._judge.decide(row.trial.id, {"step": step, **metrics}, is_last=is_last)
        event = Event(row.trial.id, self._order, step, decision, metrics)
        self._order += 1
        journal.write(row.folder, event)
        row.events.append(event)
        if self._store is not None:
            self._store.send(row.trial.id, journal.FILE)
        return decision
