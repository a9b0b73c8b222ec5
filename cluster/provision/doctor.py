"""Ask every node of a cluster for the facts that `diagnosis` judges, by an actor each, which takes no CPU."""

import contextlib
import hashlib
import os
import platform
import shutil
import socket
import sysconfig
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.provision.diagnosis import Facts
from cluster.session import ClusterError
from zfdist import object_store as remote
from zfdist.container import user_home
from zfdist.errors import ZfdistError
from zfdist.world import interface_of

PACKAGES = ("torch", "ray", "deepspeed", "pyarrow", "numpy")
_PAYLOAD_BYTES = 32 * 2**20
_PATIENCE_S = 120
_START_S = 60


def examine(storage: str) -> list[Facts]:
    """Ask every node of the connected cluster; the head first.

    Args:
        storage: where runs are to be kept, a folder or the URI of a store.

    Raises:
        ClusterError: if a node starts no process of ours; names all such nodes.
    """
    known = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: "node:__internal_head__" not in n["Resources"])
    folder = f"doctor-{uuid.uuid4().hex[:12]}"
    examiners = [_examiner_on(node["NodeID"]) for node in known]
    addresses = [node["NodeManagerAddress"] for node in known]
    asked = {examiners[i].facts.remote(ip): ip for i, ip in enumerate(addresses)}
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_START_S)
    if silent:
        raise ClusterError(
            f"no process starts on {', '.join(asked[each] for each in silent)} within {_START_S} s: is the token of "
            "the cluster in ~/.ray/auth_token there? /tmp/ray/session_latest/logs there have more"
        )
    told = ray.get(list(asked))
    skews = [_skew_s(examiner) for examiner in examiners]
    written = ray.get([e.write.remote(storage, folder, str(i)) for i, e in enumerate(examiners)], timeout=_PATIENCE_S)
    others = [str(i) for i, (error, _) in enumerate(written) if not error]
    read = ray.get([e.read.remote(storage, folder, others) for e in examiners], timeout=_PATIENCE_S)
    ray.get(examiners[0].clean.remote(storage, folder), timeout=_PATIENCE_S)
    speeds = _speeds(examiners)
    facts = [
        Facts(
            ip=addresses[i],
            is_head="node:__internal_head__" in node["Resources"],
            cpus=node["Resources"].get("CPU", 0),
            gpus_of_ray=node["Resources"].get("GPU", 0),
            storage_error=written[i][0] or read[i][0],
            storage_s=written[i][1] + read[i][1],
            skew_s=skews[i],
            mib_per_s=speeds[i],
            **told[i],
        )
        for i, node in enumerate(known)
    ]
    for examiner in examiners:
        ray.kill(examiner)
    return facts


def _examiner_on(node_id: str) -> Any:
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    seen = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}  # all GPUs, though it holds none
    return (
        ray.remote(_Examiner).options(num_cpus=0, scheduling_strategy=affinity, runtime_env={"env_vars": seen}).remote()
    )


def _skew_s(examiner: Any) -> float:
    """Return how far a node's clock is from ours, beyond what the question itself took; the best of three."""
    found = []
    for _ in range(3):
        before_s = time.time()
        there_s = ray.get(examiner.now.remote(), timeout=_PATIENCE_S)
        after_s = time.time()
        found.append(there_s - min(max(there_s, before_s), after_s))
    return float(min(found, key=abs))


def _speeds(examiners: Sequence[Any]) -> list[float | None]:
    """Return at how many MiB/s each node gets data from the one before it; one transfer at a time."""
    if len(examiners) < 2:
        return [None] * len(examiners)
    found: list[float | None] = []
    for i, receiver in enumerate(examiners):
        payload = examiners[i - 1].hold.remote()
        ray.wait([payload], timeout=_PATIENCE_S, fetch_local=False)
        found.append(ray.get(receiver.fetch.remote([payload]), timeout=_PATIENCE_S))
    return found


class _Examiner:
    """Runs on the node that is examined."""

    def facts(self, ip: str) -> dict[str, Any]:
        host = socket.gethostname()
        gpus, gpu_error = _torch_gpus()
        return {
            "host": host,
            "versions": {"python": platform.python_version(), **_versions(), "code": _code()},
            "interface": interface_of(ip),
            "name_is_loopback": _address_of(host).startswith("127."),
            "gpus_of_torch": gpus,
            "gpu_error": gpu_error,
            "disk_gib": shutil.disk_usage(user_home()).free / 2**30,
            "shm_mib": shutil.disk_usage("/dev/shm").free / 2**20,
            "has_token": bool(os.environ.get("RAY_AUTH_TOKEN")) or (user_home() / ".ray/auth_token").is_file(),
            "has_compiler": all(map(shutil.which, ("cc", "g++"))),
            "has_headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        }

    def now(self) -> float:
        return time.time()

    def write(self, storage: str, folder: str, name: str) -> tuple[str, float]:
        return _timed(lambda: _put(storage, folder, name, name.encode()))

    def read(self, storage: str, folder: str, names: Sequence[str]) -> tuple[str, float]:
        def all_of_them() -> None:
            for name in names:
                if _get(storage, folder, name) != name.encode():
                    raise OSError(f"{storage}: gives back something else than was written")

        return _timed(all_of_them)

    def clean(self, storage: str, folder: str) -> None:
        if remote.is_remote(storage):
            remote.ObjectFolder(storage).delete_folder(folder)
        else:
            shutil.rmtree(Path(storage) / folder, ignore_errors=True)

    def hold(self) -> bytes:
        return os.urandom(_PAYLOAD_BYTES)

    def fetch(self, payload: Sequence[Any]) -> float:
        started_s = time.monotonic()
        ray.get(payload[0])
        return _PAYLOAD_BYTES / 2**20 / (time.monotonic() - started_s)


def _versions() -> dict[str, str]:
    found = dict.fromkeys(PACKAGES, "none")
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _code() -> str:
    """Return a short hash of the project's code as this process would import it."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for path in sorted(p for package in ("zfdist", "cluster") for p in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _torch_gpus() -> tuple[int, str]:
    """Return how many GPUs torch can use, and why not more if the driver says otherwise."""
    if shutil.which("nvidia-smi") is None:
        return 0, "no nvidia-smi"
    import torch

    try:
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0, ""
    except RuntimeError as error:
        return 0, str(error).splitlines()[0]


def _address_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _timed(call: Any) -> tuple[str, float]:
    started_s = time.monotonic()
    try:
        call()
    except (OSError, ValueError, ZfdistError) as error:
        return " ".join(str(error).split()), 0.0
    return "", time.monotonic() - started_s


def _put(storage: str, folder: str, name: str, content: bytes) -> None:
    if remote.is_remote(storage):
        remote.ObjectFolder(storage, tries=1).write(f"{folder}/{name}", content)
    else:
        (Path(storage) / folder).mkdir(parents=True, exist_ok=True)
        (Path(storage) / folder / name).write_bytes(content)


def _get(storage: str, folder: str, name: str) -> bytes:
    if remote.is_remote(storage):
        return remote.ObjectFolder(storage, tries=1).read(f"{folder}/{name}")
    try:
        return (Path(storage) / folder / name).read_bytes()
    except FileNotFoundError:
        raise OSError(f"{storage} is not shared: a file that another node wrote there is not seen; "
                      "mount the same filesystem on all nodes, or use a bucket") from None  # fmt: skip
