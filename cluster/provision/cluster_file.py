"""The cluster file with an overlay laid over it.

An overlay is a YAML file of the same form. Each of its top-level keys takes the place of the file's; null removes one.
The result is kept at one place per cluster, so that what Ray's launcher prints about it stays true.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cluster.session import ClusterError
from zfdist.container import user_home

FILE = Path("ray-cluster.yaml")


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
    merged = user_home() / ".cache" / "zfdist" / "clusters" / f"{name}.yaml"
    merged.parent.mkdir(parents=True, exist_ok=True)
    merged.write_text(yaml.safe_dump(config, sort_keys=False))
    return Cluster(config, merged)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ClusterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ClusterError(f"{path}: not a mapping of settings")
    return tree


def _absolute(path: str, file: Path) -> Path:
    return Path(os.path.normpath(file.absolute().parent / os.path.expanduser(path)))
