"""What a drill on a cluster from zero measures."""

from typing import NamedTuple

from followed_run import Run
from host_cloud import CloudCluster
from waiting import HostError, last_lines


class Times(NamedTuple):
    """Seconds."""

    asked_s: float | None
    """From the command to the first machine that is asked for."""
    step_s: float | None
    """From the command to the first step."""
    zero_s: float | None
    """From the end of the job to a cluster without machines."""
    most: int
    """Machines that there were in all."""


def ended_well(run: Run) -> None:
    """Wait for the good end of a run."""
    if run.wait() != 0:
        raise HostError(f"{run.folder.name}: exit code {run.wait()}:\n{last_lines(run.said())}")


def measured(cluster: CloudCluster, started_s: float, step_at_s: float | None, over_s: float) -> Times:
    """Wait until no machine is left; return what a job took, which began, made a step and ended at these times."""
    zero_s = cluster.wait_for_zero() - over_s
    asked = cluster.cloud.since(started_s, "asked for")
    return Times(asked[0].at_s - started_s, None if step_at_s is None else step_at_s - started_s, zero_s, len(asked))
