"""What becomes of a run: decisions, from what is seen of its workers and machines. Nothing here acts."""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from cluster.run.heartbeat import WorkerStatus
from zfdist.run_options import Range

FALSE_STARTS = 3
"""Launches in a row whose workers never came, while other programs hold what the cluster has (two minutes each)."""
SETTLE_S = 5.0
"""What a launch held is free again by then."""
GATHER_S = 20.0
"""Machines that are started together are there within so much of each other."""
_STUCK_S = 3.0  # after one worker stood still for too long, until all others have said where they are
_LATE_S = 5.0  # a worker's own timer ends it first, and leaves its stacks


class End(NamedTuple):
    """How a launch ended."""

    kind: Literal["finished", "stopped", "lost", "refused", "unstarted"]
    """Lost: workers died, or were ended. Refused: another try would end the same way. Unstarted: they never came."""
    step: int
    """How far it was, as far as is known."""
    why: str = ""
    """What happened, or why it was asked to end."""
    planned: bool = False
    """Whether it was asked to end for the sake of another number of workers, or of other machines."""
    error: Exception | None = None


def what_next(
    end: End, *, deaths: int, max_failures: int, false_starts: int, stop_asked: bool
) -> Literal["over", "again", "give up"]:
    """Return whether a run is over, is launched again, or is given up.

    Args:
        end: of the last launch.
        deaths: launches that were lost, this one included; see `counts`.
        max_failures: deaths that are answered by another launch.
        false_starts: launches in a row that never started, this one included.
        stop_asked: whether somebody wants the run to stop.
    """
    if end.kind == "finished" or (end.kind == "stopped" and (stop_asked or not end.planned)):
        return "over"
    if end.kind == "refused":
        return "give up"
    if stop_asked:
        return "over"
    tired = deaths > max_failures if end.kind == "lost" else false_starts >= FALSE_STARTS
    return "give up" if tired else "again"


def counts(end: End) -> bool:
    """Return whether an end is a death: what was announced (a machine taken away, a resize) is none."""
    return end.kind == "lost" and not end.planned


def team_size(
    workers: Range, *, reserved: int, room: int, enough_for_s: float, settle_s: float = SETTLE_S
) -> int | None:
    """Return how many workers to launch; None while there are too few machines, or more are about to be there.

    Args:
        workers: how many there may be.
        reserved: for how many there is room that nobody else can take.
        room: for how many there would be, if nobody else were there, and all came that may be waited for.
        enough_for_s: how long there has been room for the fewest.
        settle_s: how long more are waited for then.
    """
    if reserved < workers.low:
        return None
    size = min(reserved, workers.high)
    return size if size >= min(workers.high, room) or enough_for_s >= settle_s else None


def trouble(
    seen: Sequence[WorkerStatus], alive: Collection[str], *, hang_timeout_s: float, lease_s: float
) -> str | None:
    """Return why a launch must be ended at once, naming the workers; None if all is well.

    Args:
        seen: the workers that have joined.
        alive: ids of the machines that are up.
        hang_timeout_s: how long a worker may be without progress.
        lease_s: how long a worker may be without a sign of life.
    """
    gone = [s for s in seen if s.member.node_id not in alive]
    if gone:
        return f"lost {_names(gone)}: the machine is gone"
    silent = [s for s in seen if s.age_s > lease_s + _LATE_S]
    if silent:
        return f"lost {_names(silent)}: no sign of life for {silent[0].age_s:.0f} s"
    still = [s for s in seen if s.heartbeat.at]
    if not still or max(s.heartbeat.still_s for s in still) < hang_timeout_s + _STUCK_S:
        return None
    silent = [s for s in seen if s.age_s > _LATE_S]
    if silent:  # it is what the others wait for
        return f"lost {_names(silent)}: no sign of life for {silent[0].age_s:.0f} s"
    culprits = [s for s in still if not s.heartbeat.waits] or still
    places = ", ".join(sorted({s.heartbeat.at for s in culprits}))
    return (
        f"{_names(culprits)} made no progress for {culprits[0].heartbeat.still_s:.0f} s (at {places}; "
        "all stacks are in hangs/)"
    )


def _names(seen: Sequence[WorkerStatus]) -> str:
    """Return e.g. "worker 1 on 10.77.0.3"."""
    return ", ".join(f"worker {s.member.rank} on {s.member.ip}" for s in seen)
