"""What is alive in the cluster and what it offers, and what an autoscaler may add to it."""

import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray

from cluster import ray_internals
from cluster.session import ClusterError

_KNOCK_S = 2.0
HEAD = "node:__internal_head__"
"""A resource that only the head has."""
ASKED_AFTER = "zfdist/asked-after-s"
"""The label of a type of machine that stands in for those that have not come: after so many whole seconds."""
_TYPE = "ray.io/node-group"  # the label by which an autoscaler's machine says its type


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
    type: str = ""
    """Which of the autoscaler's types it is, if it was told."""
    is_head: bool = False


class WorkerResources(NamedTuple):
    """What one worker of a run holds."""

    cpus: int
    gpus: float
    """0, 1, or a part of one GPU."""

    @property
    def bundle(self) -> dict[str, float]:
        """The same in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def device(self) -> str:
        """What it computes on: "cpu" or "cuda"."""
        return "cuda" if self.gpus else "cpu"


class NodeType(NamedTuple):
    """One kind of machine that an autoscaler starts."""

    name: str
    most: int
    """At a time."""
    node: Node | None
    """What one of them has; None if that is not known before one is there."""
    asked_after_s: int | None = None
    """How long a job waits for the others before it asks for this one; None if it is one of those."""

    @property
    def selector(self) -> dict[str, str]:
        """What a request that only such a machine can hold says of it."""
        return {} if self.asked_after_s is None else {ASKED_AFTER: str(self.asked_after_s)}


class Autoscaler(NamedTuple):
    """What the cluster's autoscaler may start."""

    types: tuple[NodeType, ...]
    most: int
    """Machines at a time, of all types together, without the head."""


class Coming(NamedTuple):
    """Machines that are not there, but may come."""

    nodes: tuple[Node, ...] = ()
    """Each that an autoscaler may start."""
    most: int = 0
    """Of those at a time."""
    of_unknown_size: int = 0
    """Machines that somebody has listed, or must be about to start."""

    def room_for(self, resources: WorkerResources) -> int:
        """Return how many workers with such resources they would hold."""
        rooms = sorted((room_for([node], resources) for node in self.nodes), reverse=True)
        return sum(rooms[: self.most])


NOTHING = Coming()


def autoscaler() -> Autoscaler | None:
    """Return what the cluster's autoscaler may start; None if it has none."""
    context = ray.get_runtime_context()
    head = next((n["NodeID"] for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"]), None)
    if head in (None, context.get_node_id()):
        settings = ray_internals.autoscaler_settings_here(context.gcs_address)
    else:
        ask = ray.remote(ray_internals.autoscaler_settings_here).options(num_cpus=0, resources={HEAD: 0.001})
        settings = ray.get(ask.remote(context.gcs_address))
    return None if settings is None else autoscaler_of(settings)


def autoscaler_of(settings: Mapping[str, Any]) -> Autoscaler:
    """Return what an autoscaler with such settings, a cluster file that Ray has filled in, may start.

    Raises:
        ClusterError: if a type is to be asked for after a time that is no number of seconds.
    """
    head, most = settings.get("head_node_type"), int(settings.get("max_workers", 0))
    types = []
    for name, settings_of_type in settings.get("available_node_types", {}).items():
        limit = int(settings_of_type.get("max_workers", 0 if name == head else most))
        has = settings_of_type.get("resources") or {}
        node = Node("", int(has.get("CPU", 0)), int(has.get("GPU", 0)), type=name) if has else None
        if limit > 0:
            types.append(NodeType(name, limit, node, asked_after_s(name, settings_of_type)))
    return Autoscaler(tuple(types), most)


def asked_after_s(name: str, settings_of_type: Mapping[str, Any]) -> int | None:
    """Return how long the other types are waited for before this one is asked for; None if it is one of those.

    Raises:
        ClusterError: if its label is no number of seconds.
    """
    label = (settings_of_type.get("labels") or {}).get(ASKED_AFTER)
    if label is not None and not re.fullmatch(r"[1-9]\d{0,5}", str(label)):
        raise ClusterError(f'available_node_types.{name}.labels: {ASKED_AFTER} = {label!r}: whole seconds, e.g. "300"')
    return None if label is None else int(label)


def coming(alive: Sequence[Node], autoscaler: Autoscaler | None) -> Coming:
    """Return what may come to the machines that are up, other than by surprise.

    Without an autoscaler that is nothing, unless nothing that is up could ever train: whoever started a head without
    CPUs is about to start workers.
    """
    if autoscaler is None:
        return Coming(of_unknown_size=int(not any(node.cpus for node in alive)))
    workers = [node for node in alive if not node.is_head]
    nodes: list[Node] = []
    of_unknown_size = 0
    for kind in autoscaler.types:
        here = sum(node.type == kind.name or len(autoscaler.types) == 1 for node in workers)
        missing = max(0, kind.most - here)
        if kind.node is None:
            of_unknown_size += missing
        else:
            nodes += [kind.node] * missing
    return Coming(tuple(nodes), max(0, autoscaler.most - len(workers)), of_unknown_size)


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
    return Node(
        entry["NodeManagerAddress"],
        cpus,
        gpus,
        entry["NodeID"],
        entry["NodeManagerPort"],
        draining_until_s,
        (entry.get("Labels") or {}).get(_TYPE, ""),
        HEAD in resources,
    )


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
    coming: Coming = NOTHING,
) -> WorkerResources:
    """Return what each of `workers` gets: a GPU where there are any, and an even part of the CPUs if not told.

    With `gpu_part`, in (0, 1], it is so much of one GPU, where `use_gpu` is not False. What is `coming` counts as if
    it were there.

    Raises:
        ClusterError: if the cluster is too small for that; names what is there, and may come. Also for several workers
            with a part of a GPU each, as NCCL has no two on one.
    """
    if gpu_part not in (None, 1.0) and workers > 1:
        raise ClusterError(
            f"a part of a GPU ({gpu_part:g}) is for one worker, not {workers}: NCCL has no two on one GPU"
        )
    everything = [*nodes, *coming.nodes]
    wanted = use_gpu if use_gpu is not None else gpu_part is not None or any(n.gpus for n in everything)
    gpus = (gpu_part or 1) * wanted
    most = max((n.cpus for n in everything), default=0)

    def room(resources: WorkerResources) -> int:
        return room_for(nodes, resources) + coming.room_for(resources)

    for cpus in [cpus_per_worker] if cpus_per_worker else range(most, 0, -1):
        if room(WorkerResources(cpus, gpus)) >= workers:
            return WorkerResources(cpus, gpus)
    smallest = WorkerResources(cpus_per_worker or 1, gpus)
    need = describe_worker(smallest)
    if coming.nodes and not room(smallest):
        raise ClusterError(
            f"a worker of {need} fits no machine: the cluster has {describe(nodes)}, and {describe_coming(coming)}; "
            + ("pass a smaller --cpus-per-worker" if smallest.cpus > most else "add a type of machine that has both")
        )
    raise ClusterError(
        f"--workers {workers} of {need} each do not fit: the cluster has {describe(nodes)}"
        + (f", and {describe_coming(coming)}" if coming.nodes else "")
        + f", room for {room(smallest)}; pass fewer --workers"
        + (" or a smaller --cpus-per-worker" if smallest.cpus > 1 else "")
    )


def describe_worker(resources: WorkerResources) -> str:
    """Return e.g. "4 CPUs and a GPU"."""
    gpus = "a" if resources.gpus == 1 else format(resources.gpus, "g")
    return _plural(resources.cpus, "CPU") + (f" and {gpus} GPU" if resources.gpus else "")


def describe(nodes: Sequence[Node]) -> str:
    """Return e.g. "1 machine with 2 CPUs and no GPU"."""
    return f"{_plural(len(nodes), 'machine')} with {_sizes(nodes)}"


def describe_coming(coming: Coming) -> str:
    """Return e.g. "at most 8 more may come (gpu: 8 CPUs and 1 GPU)"."""
    kinds = "; ".join(f"{node.type}: {_sizes([node])}" for node in dict.fromkeys(coming.nodes))
    return f"at most {min(coming.most, len(coming.nodes))} more may come ({kinds})"


def _sizes(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    return f"{_plural(cpus, 'CPU')} and {_plural(gpus, 'GPU') if gpus else 'no GPU'}"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
