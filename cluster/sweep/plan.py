"""How a sweep is run, whole from the command line to the driver; none of it changes what a trial is."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stopping:
    """What trials are compared by, and which of them are stopped early."""

    metric: str = "valid/elbo_nats"
    """The objective, a name of metrics.jsonl that validations write."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    asha: bool = True
    """Stop early (ASHA) what lags behind the other trials at the same step."""
    grace_steps: int | None = None
    """Optimizer steps before which no trial is stopped; None for a quarter of the run."""
    reduction_factor: float = 3.0
    """One in so many trials goes on from each rung; rungs are this factor apart in steps."""


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
    max_concurrent: int | None = None
    """Trials at a time; None for as many as fit."""


@dataclass(frozen=True)
class SweepPlan:
    """All that whoever starts a sweep says of it beside its trials."""

    stopping: Stopping = Stopping()
    machines: TrialMachines = TrialMachines()
    profile: bool = False
    """Every trial also writes where its time goes, see `zfdist.profile`."""
    max_failures: int = 2
    """Times that a trial is begun again after its process died."""

    @property
    def workers(self) -> int:
        """Processes of each trial."""
        return self.machines.workers_per_trial
