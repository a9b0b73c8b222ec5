"""The cluster file with an overlay laid over it.

An overlay is a YAML file of the same form. Each of its top-level keys takes the place of the file's; null removes one.
The result is kept at one place per cluster, so that what Ray's launcher prints about it stays true.
"""

import os
import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cluster.session import ClusterError
from zfdist import atomic_io
from zfdist.container import user_home

FILE = Path("ray-cluster.yaml")
_MERGED = Path(".cache/zfdist/clusters")  # below the home folder


class Cluster(NamedTuple):
    """A cluster as its files describe it."""

    config: Mapping[str, Any]
    """The file with its overlay; paths of this machine are absolute."""
    file: Path
    """The same, written for Ray's launcher."""

    @property
    def name(self) -> str:
        """What Ray calls the cluster."""
        return str(self.config["cluster_name"])

    @property
    def is_local(self) -> bool:
        """Whether its machines are ours rather than a cloud's."""
        return bool(self.config["provider"]["type"] == "local")

    @property
    def workers_of_ours(self) -> list[str]:
        """Names or addresses of the machines that the file lists besides the head; none of a cloud's."""
        return list(self.config["provider"].get("worker_ips") or []) if self.is_local else []


def read(file: Path = FILE, overlay: Path | None = None) -> dict[str, Any]:
    """Return the cluster file with the overlay laid over it, as it stands.

    Raises:
        ClusterError: if one is missing or not a mapping in YAML.
    """
    config = _mapping(file)
    for key, value in (_mapping(overlay) if overlay else {}).items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    return config


def load(file: Path = FILE, overlay: Path | None = None) -> Cluster:
    """Return the cluster of the file and overlay, written out for Ray's launcher.

    Raises:
        ClusterError: as `read`.
    """
    config = read(file, overlay)
    mounts = config.get("file_mounts") or {}
    config["file_mounts"] = {there: str(_absolute(here, file)) for there, here in mounts.items()}
    name = config.get("cluster_name")
    if not isinstance(name, str) or not name or "/" in name:
        raise ClusterError(f"{file}: cluster_name = {name!r}: must be a plain name")
    if not isinstance(config.get("provider"), dict) or "type" not in config["provider"]:
        raise ClusterError(f"{overlay or file}: provider.type is missing: aws, gcp, azure or local")
    folder = user_home() / _MERGED
    folder.mkdir(parents=True, exist_ok=True)
    merged = folder / f"{name}.yaml"
    atomic_io.write(merged, yaml.safe_dump(config, sort_keys=False))
    return Cluster(config, merged)


def machines(config: Mapping[str, Any]) -> list[str]:
    """Return what machines may train, a line for each type, e.g. "gpu: up to 8 of 8 CPU, 1 GPU"."""
    listed = (config.get("provider") or {}).get("worker_ips")
    if listed:
        return [f"machines of ours: {len(listed)}, with what each of them has"]
    types = {n: t for n, t in (config.get("available_node_types") or {}).items() if n != config.get("head_node_type")}
    used = {name: kind for name, kind in types.items() if kind.get("max_workers") != 0}
    return [_describe(name, kind, config.get("max_workers")) for name, kind in used.items()]


def _describe(name: str, kind: Mapping[str, Any], most: int | None) -> str:
    has = ", ".join(f"{amount:g} {what}" for what, amount in (kind.get("resources") or {}).items())
    counts = [count for count in (kind.get("max_workers"), most) if count is not None]
    return f"{name}: up to {min(counts, default=0)} of {has or 'what the cloud says'}"


def absent(listed: Iterable[str], there: Collection[str]) -> list[str]:
    """Return which machines are not there, of those that a file lists by name or address.

    Args:
        listed: names or addresses.
        there: the names and addresses of all that are.
    """
    return [machine for machine in sorted(set(listed)) if machine not in there and _resolved(machine) not in there]


def _resolved(machine: str) -> str:
    try:
        return socket.gethostbyname(machine)
    except OSError:
        return machine


def _mapping(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        where = "run this in a checkout of the repository, which has the cluster files, or pass --file and --overlay"
        raise ClusterError(f"{path}: is not here; {where}") from None
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ClusterError(f"{path}: not a mapping of settings")
    return tree


def _absolute(path: str, file: Path) -> Path:
    return Path(os.path.normpath(file.absolute().parent / os.path.expanduser(path)))
