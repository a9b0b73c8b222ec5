"""Where the workers of one launch and the command that started them meet.

A small actor beside the command. Each worker says once a second how far it is and takes along what is asked of it; a
worker that gets no answer for as long as its lease has to end by itself, so that a machine that was cut off never
writes into a run that others have gone on with. The coordinator holds nothing that a run needs.

Who a worker is passes through as packed bytes: the handles in it would make the coordinator import Ray Train, while
workers wait.
"""

import pickle
import time
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Member(NamedTuple):
    """Who a worker is, and what has to be freed to be rid of it."""

    rank: int
    ip: str
    node_id: str
    pid: int
    actor: Any
    placement_group: Any


class Heartbeat(NamedTuple):
    """What a worker says of itself."""

    step: int
    still_s: float
    """Since it last finished a piece of work."""
    at: str
    """The line of code that it is at, if it has been still for too long."""
    waits: bool
    """Whether that line waits for other workers."""


class WorkerStatus(NamedTuple):
    """A worker as the command sees it."""

    member: Member
    heartbeat: Heartbeat
    age_s: float
    """Since its last heartbeat."""


class Coordinator:
    """The actor; one for each launch."""

    def __init__(self) -> None:
        self._members: dict[int, bytes] = {}
        self._heartbeats: dict[int, tuple[Heartbeat, float]] = {}
        self._end = False

    def join(self, rank: int, member: bytes) -> None:
        """Take in a worker, a packed `Member`."""
        self._members[rank] = member
        self._heartbeats[rank] = (Heartbeat(0, 0.0, "", False), time.monotonic())

    def heartbeat(self, rank: int, heartbeat: Heartbeat) -> bool:
        """Take a worker's heartbeat; return whether the run shall save and end."""
        self._heartbeats[rank] = (heartbeat, time.monotonic())
        return self._end

    def end(self) -> None:
        """Ask all workers, also those that join later, to save and end."""
        self._end = True

    def seen(self) -> list[tuple[bytes, Heartbeat, float]]:
        """Return all workers that have joined, by rank: what makes a `WorkerStatus`, with the member packed."""
        now = time.monotonic()
        return [
            (self._members[rank], heartbeat, now - at) for rank, (heartbeat, at) in sorted(self._heartbeats.items())
        ]


def start_coordinator() -> Any:
    """Start the actor on this node and return its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy=here).remote()


def join(coordinator: Any, member: Member) -> None:
    """Make a worker known to the coordinator; returns once it is."""
    ray.get(coordinator.join.remote(member.rank, pickle.dumps(member)))


def worker_statuses(coordinator: Any, *, within_s: float) -> list[WorkerStatus]:
    """Return all workers that have joined, by rank; raises RayError if the coordinator does not answer in time."""
    answer = ray.get(coordinator.seen.remote(), timeout=within_s)
    return [WorkerStatus(pickle.loads(member), heartbeat, age_s) for member, heartbeat, age_s in answer]
