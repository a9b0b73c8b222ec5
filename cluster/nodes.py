"""What is alive in the cluster and what it offers."""

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from cluster import ray_internals
from cluster.session import ClusterError

_KNOCK_S = 2.0


class Node(NamedTuple):
    """One machine of the cluster: all that it has, in use or not."""

    ip: str
    cpus: int
    gpus: int
    id: str = ""
    port: int = 0
    """Where its Ray listens."""
    draining_until_s: float | None = None
    """When it will be taken away, in seconds since 1970; 0 if it does not say. None if it stays."""


class WorkerResources(NamedTuple):
    """What one worker of a run holds."""

    cpus: int
    gpus: float
    """0, 1, or a part of one GPU."""


def alive() -> list[Node]:
    """Return the machines that are up, also those that are about to be taken away."""
    draining = ray_internals.draining_nodes()
    return [_node(n, n["Resources"], draining.get(n["NodeID"])) for n in ray.nodes() if n["Alive"]]


def free(nodes: Sequence[Node]) -> list[Node]:
    """Return the machines with only what nobody holds."""
    available = ray_internals.free_resources()
    return [
        n._replace(cpus=int(available.get(n.id, {}).get("CPU", 0)), gpus=int(available.get(n.id, {}).get("GPU", 0)))
        for n in nodes
    ]


def reachable(nodes: Sequence[Node]) -> list[Node]:
    """Return the machines whose Ray answers; that one does not is known to Ray itself only some seconds later."""
    return [n for n in nodes if not n.port or _answers(n)]


def _answers(node: Node) -> bool:
    try:
        socket.create_connection((node.ip, node.port), timeout=_KNOCK_S).close()
    except OSError:
        return False
    return True


def staying(nodes: Sequence[Node]) -> list[Node]:
    """Return the machines that nobody is about to take away."""
    return [n for n in nodes if n.draining_until_s is None]


def leaves_at_s(node_id: str) -> float | None:
    """Return when a machine will be taken away, in seconds since 1970 (0 if that is not known); None if it stays."""
    return ray_internals.draining_nodes().get(node_id)


def _node(entry: dict[str, Any], resources: dict[str, float], draining_until_s: float | None) -> Node:
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return Node(entry["NodeManagerAddress"], cpus, gpus, entry["NodeID"], entry["NodeManagerPort"], draining_until_s)


def room_for(nodes: Sequence[Node], resources: WorkerResources) -> int:
    """Return how many workers with such resources the machines hold, each worker on one machine."""
    return sum(
        min(
            n.cpus // resources.cpus if resources.cpus else 10**6,
            n.gpus * on_a_gpu(resources) if resources.gpus else 10**6,
        )
        for n in nodes
    )


def on_a_gpu(resources: WorkerResources) -> int:
    """Return how many workers with such a part of a GPU one GPU holds: 3 of 0.33, but 2 of 0.34."""
    return int(1 / resources.gpus + 1e-9)


def resources_per_worker(
    nodes: Sequence[Node],
    *,
    workers: int,
    cpus_per_worker: int | None,
    use_gpu: bool | None,
    gpu_part: float | None = None,
) -> WorkerResources:
    """Return what each of `workers` gets: a GPU where there are any, and an even part of the CPUs if not told.

    With `gpu_part`, in (0, 1], it is so much of one GPU, where `use_gpu` is not False.

    Raises:
        ClusterError: if the cluster is too small for that; names what is there. Also for several workers with a part
            of a GPU each, as NCCL has no two on one.
    """
    if gpu_part not in (None, 1.0) and workers > 1:
        raise ClusterError(
            f"a part of a GPU ({gpu_part:g}) is for one worker, not {workers}: NCCL has no two on one GPU"
        )
    wanted = use_gpu if use_gpu is not None else gpu_part is not None or any(n.gpus for n in nodes)
    gpus = (gpu_part or 1) * wanted
    most = max((n.cpus for n in nodes), default=0)
    for cpus in [cpus_per_worker] if cpus_per_worker else range(most, 0, -1):
        if room_for(nodes, WorkerResources(cpus, gpus)) >= workers:
            return WorkerResources(cpus, gpus)
    smallest = WorkerResources(cpus_per_worker or 1, gpus)
    need = _plural(smallest.cpus, "CPU") + (f" and {'a' if gpus == 1 else format(gpus, 'g')} GPU" if gpus else "")
    raise ClusterError(
        f"--workers {workers} of {need} each do not fit: the cluster has {describe(nodes)}, "
        f"room for {room_for(nodes, smallest)}; pass fewer --workers"
        + (" or a smaller --cpus-per-worker" if smallest.cpus > 1 else "")
    )


def describe(nodes: Sequence[Node]) -> str:
    """Return e.g. "1 machine with 2 CPUs and no GPU"."""
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    return (
        f"{_plural(len(nodes), 'machine')} with {_plural(cpus, 'CPU')} and {_plural(gpus, 'GPU') if gpus else 'no GPU'}"
    )


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
