"""How a sweep is run, whole from the command line to the driver; none of it changes what a listed trial is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.sweep.goal import Goal
from cluster.sweep.suggest import Known, Search
from zfdist.config import Config

Rule = Literal["asha", "hyperband", "median", "none"]


@dataclass(frozen=True)
class Stopping:
    """Which trials are stopped early."""

    scheduler: Literal["asha", "hyperband", "median", "none", "pbt"] | None = None
    """Who stops early what lags behind others at the same step; default asha, and none with several objectives. pbt:
    nobody, but the worst quarter of a population goes on from the best, with other values (see --population)."""
    grace_steps: int | None = None
    """Optimizer steps before which no trial is stopped; None for a quarter of the run."""
    reduction_factor: float = 3.0
    """asha, hyperband: one in so many trials goes on from each rung; rungs are this factor apart in steps."""

    def rule(self, goal: Goal) -> Rule:
        """Return who stops trials of a sweep with such a goal."""
        if self.scheduler is None or self.scheduler == "pbt":
            return "none" if len(goal.objectives) > 1 else "asha"
        return self.scheduler

    def grace(self, base: Config) -> int:
        """Return the optimizer steps before which no trial is stopped; at least one validation."""
        every, steps = base.train.validate_every, base.train.steps
        return min(self.grace_steps or max(every, math.ceil(steps / 4 / every) * every), steps)


@dataclass(frozen=True)
class TrialMachines:
    """Where it runs."""

    workers_per_trial: int = 1
    """Processes that share each trial's global batch."""
    cpus_per_worker: int = 1
    """CPUs of each worker."""
    gpu: bool | None = None
    """A GPU for each worker; None if there are any."""
    gpus_per_trial: float | None = None
    """Part of one GPU that each trial takes, e.g. 0.25 for four trials on a GPU; for trials of one worker."""
    trials_at_once: int | None = None
    """None for as many as fit."""
    retries: int = 2
    """How often a trial whose process died is tried again, from its checkpoint."""


@dataclass(frozen=True)
class SweepPlan:
    """All that whoever starts a sweep says of it beside its trials."""

    stopping: Stopping = Stopping()
    machines: TrialMachines = TrialMachines()
    profile: bool = False
    """Every trial also writes where its time goes, see `zfdist.profile`."""
    goal: Goal = field(default_factory=Goal)
    search: Search | None = None
    """What suggests the trials that the record still lacks."""
    before: Sequence[Known] = ()
    """What the search knows from elsewhere."""
    time_budget_s: float | None = None
    """For the whole sweep, over all commands that went on with it; None for no end."""
    spent_before_s: float = 0.0
    """Of the budget, by sweeps that this one is a further part of: generations, or the search that it confirms."""

    @property
    def workers(self) -> int:
        """Processes of each trial."""
        return self.machines.workers_per_trial
