"""What is wrong with a cluster, before a run costs money on it: judgement of the facts that `doctor` collects.

Facts are plain data, so that tests can feed every illness.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cluster import nodes
from cluster.nodes import WorkerResources
from cluster.provision.cluster_file import absent

_MAX_SKEW_S = 2.0
_MIN_DISK_GIB = 10.0
_MIN_SHM_MIB = 512
_NOT_THERE = (
    "is in provider.worker_ips and not in the cluster: if it has had a minute to join, `zfdist cluster up` "
    "brings it back or says why not; or take it out of the file"
)


class Facts(NamedTuple):
    """What a node says of itself."""

    host: str
    ip: str
    is_head: bool
    versions: Mapping[str, str]
    """Of Python and of PACKAGES ("none" if absent), and "code": a hash of the project's code there."""
    interface: str | None
    """That carries the address by which Ray knows the node."""
    name_is_loopback: bool
    cpus: float
    gpus_of_ray: float
    gpus_of_torch: int
    gpu_error: str
    disk_gib: float
    shm_mib: float
    has_token: bool
    has_compiler: bool
    has_headers: bool
    storage_error: str
    """Why the node could not write to the storage or read what another wrote; empty if it could."""
    storage_s: float
    skew_s: float
    """Its clock minus the head's, as far as it is more than the time the question took."""
    mib_per_s: float | None
    """At which it gets data from another node; None if there is no other."""


class Finding(NamedTuple):
    """Something wrong, and what to do about it."""

    host: str
    sentence: str
    is_fatal: bool = True


def judge(
    facts: Sequence[Facts], *, workers: int | None = None, gpu: bool | None = None, listed: Sequence[str] = ()
) -> list[Finding]:
    """Return what is wrong with a cluster: fatal if a run would fail or give up something that it promises.

    Args:
        facts: of its nodes, the head first.
        workers: that a run is to have.
        gpu: whether each of them is to have a GPU; None if there are any.
        listed: names or addresses of machines of ours that must be there.
    """
    found = [Finding(f.host, *finding) for f in facts for finding in _about(f, facts[0])]
    gone = absent(listed, {name for f in facts for name in (f.ip, f.host)})
    found += [Finding(machine, _NOT_THERE) for machine in gone]
    trainers = [nodes.Node(f.ip, int(f.cpus), int(f.gpus_of_ray)) for f in facts]
    asked = WorkerResources(1, int(any(n.gpus for n in trainers) if gpu is None else gpu))
    room = nodes.room_for(trainers, asked)
    if room < (workers or 1):
        kind = "GPUs" if asked.gpus else "CPUs"
        found.append(
            Finding("cluster", f"room for {room} workers, {workers or 1} asked: wait for nodes to join ("
                               f"`zfdist cluster status`), or raise max_workers; a worker takes one of the {kind}")
        )  # fmt: skip
    return found


def _about(f: Facts, head: Facts) -> Iterator[tuple[str, bool]]:
    for name, version in f.versions.items():
        if version != head.versions.get(name):
            remedy = "run `zfdist cluster up` again" if name == "code" else "run setup-node.sh on it"
            yield f"{name} {version}, the head has {head.versions.get(name)}: {remedy}", True
        elif version == "none":
            yield f"no {name}: run ~/zfdist/setup-node.sh on it", True
    if f.interface is None:
        yield f"no network interface carries {f.ip}: start Ray there with --node-ip-address of its own", True
    if f.name_is_loopback:
        yield "its name resolves to loopback: workers go by the interface of Ray's address, other tools may not", False
    if f.gpus_of_ray != f.gpus_of_torch:
        why = f" ({f.gpu_error})" if f.gpu_error else ""
        yield f"Ray offers {f.gpus_of_ray:g} GPUs, torch can use {f.gpus_of_torch}{why}: check nvidia-smi there", True
    if f.disk_gib < _MIN_DISK_GIB:
        yield (
            f"{f.disk_gib:.1f} GiB of disk free, {_MIN_DISK_GIB:g} needed for caches: free some, or a larger disk",
            True,
        )
    if f.shm_mib < _MIN_SHM_MIB:
        yield f"/dev/shm has {f.shm_mib:.0f} MiB free, {_MIN_SHM_MIB} needed: mount a larger one", True
    if not f.has_token:
        yield "no token in ~/.ray/auth_token or RAY_AUTH_TOKEN: whoever reaches this Ray can run code on it", True
    if not f.has_compiler:
        yield "no gcc and g++, with which the loops over time are compiled at first use: apt-get install gcc g++", True
    if f.gpus_of_ray and not f.has_headers:
        yield "no headers of Python, against which Triton compiles for its GPU: apt-get install python3.11-dev", True
    if f.storage_error:
        yield f"storage: {f.storage_error}", True
    if abs(f.skew_s) > _MAX_SKEW_S:
        yield f"its clock is {f.skew_s:+.1f} s off the head's: run an NTP client (S3 refuses more than minutes)", True
