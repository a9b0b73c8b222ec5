"""Check the files that machines read, without a cloud: every finding is a sentence with the field and the remedy.

Ray's own schema accepts a head that never starts a worker, checkpoints that land on the head's disk, or a cluster that
is open to all; so beyond the schema we check what we know goes wrong.
"""

import contextlib
import copy
import io
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster import nodes, ray_internals
from cluster.session import ClusterError

Tree = Mapping[str, Any]

_TOKEN = "~/.ray/auth_token"
_AUTOSCALING = "--autoscaling-config=~/ray_bootstrap_config.yaml"
_START = "start-ray.sh ray start"
_SECRET = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_[A-Za-z0-9]{30,}|\b[0-9a-f]{40,}\b")
_SECRET_NAME = re.compile(r"secret|password|passwd|credential|access_key|auth_token", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"YOUR-?[A-Z]+|\b192\.0\.2\.\d+")
_PIN = re.compile(r"\b([A-Za-z0-9_-]+)==([0-9][0-9A-Za-z.]*)")
_IMAGE = re.compile(r"\brayproject/ray:([0-9.]+)(?:-py(\d+))?")


def cluster_findings(config: Tree, root: Path, *, ready: bool = False) -> list[str]:
    """Return what is wrong with a cluster file, its overlay laid over it already.

    Args:
        config: the file's content; its paths are relative to `root`.
        root: the checkout, with pyproject.toml and constraints.txt.
        ready: also find what is still to be filled in before the first use.
    """
    if found := list(_schema(config)):
        return found  # what follows relies on the form
    found = [*_versions(config, root), *_workers(config), *_start(config), *_storage(config)]
    found += [*_access(config), *_secrets(config), *_files(config, root)]
    return found + list(_placeholders(config) if ready else [])


def kuberay_findings(path: Path, root: Path) -> list[str]:
    """Return what is wrong with a KubeRay manifest."""
    found = []
    trees = list(yaml.safe_load_all(path.read_text()))
    closed = [tree["spec"]["podSelector"].get("matchLabels") for tree in trees if tree["kind"] == "NetworkPolicy"]
    for tree in [tree for tree in trees if tree["kind"] != "NetworkPolicy"]:
        spec = tree["spec"].get("rayClusterSpec") or tree["spec"]
        found += [*_versions(tree, root), *_secrets(tree)]
        if spec.get("rayVersion") != pins(root)["ray"]:
            found.append(f"rayVersion = {spec.get('rayVersion')}: must be {pins(root)['ray']} as in constraints.txt")
        if (spec.get("authOptions") or {}).get("mode") != "token":
            found.append("authOptions.mode: must be token, or whoever reaches the head can run code on it")
        start = spec["headGroupSpec"]["rayStartParams"]
        if start.get("num-cpus") != "0":
            found.append('headGroupSpec.rayStartParams.num-cpus: must be "0", so that no training sits on the head')
        for group in spec["workerGroupSpecs"]:
            if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                found.append(f"workerGroupSpecs.{group['groupName']}: needs minReplicas <= replicas <= maxReplicas")
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            labels = (group["template"].get("metadata") or {}).get("labels") or {}
            if not any(chosen is not None and chosen.items() <= labels.items() for chosen in closed):
                name = group.get("groupName", "headGroupSpec")
                found.append(f"{name}: no NetworkPolicy of this file selects its pods, whose ports ask for no token")
        entrypoint = tree["spec"].get("entrypoint")
        if entrypoint is not None and "://" not in entrypoint:
            found.append("entrypoint: --runs must be a bucket (s3://...), as the pods share no disk")
    return [f"{path.name}: {finding}" for finding in found]


def dockerfile_findings(path: Path, root: Path) -> list[str]:
    """Return what is wrong with the image's recipe."""
    return [f"{path.name}: {finding}" for finding in _versions({"FROM": path.read_text()}, root)]


def pins(root: Path) -> dict[str, str]:
    """Return the exact version of each package by its normalised name, from constraints.txt."""
    found = _PIN.findall((root / "constraints.txt").read_text())
    return {_normal(name): version for name, version in found}


def _schema(config: Tree) -> Iterator[str]:
    """Ray's own check, which `ray up` and the head make too."""
    said = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ray_internals.check_cluster_file(copy.deepcopy(dict(config)))
    except (Exception, SystemExit) as error:
        field = ".".join(map(str, getattr(error, "absolute_path", ())))
        reason = getattr(error, "message", None) or str(error) or said.getvalue()
        yield f"{field or 'the file'}: Ray refuses it: {' '.join(str(reason).split())[:300]}"
    finally:
        logging.disable(logging.NOTSET)


def _versions(tree: Tree, root: Path) -> Iterator[str]:
    pinned = pins(root)
    for field, text in _texts(tree):
        for name, version in _PIN.findall(text):
            if version != pinned.get(_normal(name), version):
                yield f"{field}: {name}=={version}, but constraints.txt has {pinned[_normal(name)]}; use that"
        for version, python in _IMAGE.findall(text):
            if version != pinned["ray"]:
                yield f"{field}: image with Ray {version}, but constraints.txt has {pinned['ray']}; use that"
            if python != (wanted := _python(root)):
                yield f"{field}: image with Python {python or 'of any version'}; zfdist needs -py{wanted}"
        ours = re.search(r"\bzfdist:([0-9][0-9A-Za-z.]*)", text)
        if ours and ours.group(1) != _project(root)["version"]:
            yield f"{field}: zfdist:{ours.group(1)}, but pyproject.toml has {_project(root)['version']}; use that"


def _workers(config: Tree) -> Iterator[str]:
    types: Tree = config.get("available_node_types") or {}
    head = config.get("head_node_type")
    for name, kind in types.items():
        low, high = kind.get("min_workers", 0), kind.get("max_workers", config.get("max_workers", 0))
        if low > high:
            yield f"available_node_types.{name}: min_workers {low} > max_workers {high}; swap them"
        if name != head and high > (most := config.get("max_workers", high)):
            yield f"available_node_types.{name}.max_workers = {high}: more than max_workers = {most}; raise that"
        try:
            nodes.asked_after_s(name, kind)
        except ClusterError as error:
            yield str(error)
    if types and all(nodes.ASKED_AFTER in (t.get("labels") or {}) for n, t in types.items() if n != head):
        yield f"available_node_types: all but the head stand in for others ({nodes.ASKED_AFTER}); take it from one"
    if head in types and types[str(head)].get("resources", {}).get("CPU") != 0:
        yield f'available_node_types.{head}.resources: must have "CPU": 0, or training lands on the head'
    if config["provider"]["type"] == "local" and not config["provider"].get("worker_ips"):
        yield "provider.worker_ips: is empty, and the head trains nothing; name at least one machine"


def _start(config: Tree) -> Iterator[str]:
    head = " ".join(config.get("head_start_ray_commands") or [])
    worker = " ".join(config.get("worker_start_ray_commands") or [])
    if _AUTOSCALING not in head:
        yield f"head_start_ray_commands: add {_AUTOSCALING}, or the head starts no worker"
    if "--num-cpus=0" not in head:
        yield "head_start_ray_commands: add --num-cpus=0, or training lands on the head"
    hosts = re.findall(r"--dashboard-host[= ](\S+)", head)
    if any(host not in ("127.0.0.1", "localhost") for host in hosts):
        yield f"head_start_ray_commands: --dashboard-host={hosts[-1]} opens it to the network; use 127.0.0.1"
    for field, commands in (("head_start_ray_commands", head), ("worker_start_ray_commands", worker)):
        if _START not in commands:
            yield f"{field}: start Ray by `bash ~/zfdist/{_START} ...`, which turns on tokens and health checks"
        if "RAY_AUTH_MODE=disabled" in commands:
            yield f"{field}: RAY_AUTH_MODE=disabled opens the cluster to whoever reaches it; remove it"


def _storage(config: Tree) -> Iterator[str]:
    metadata: Tree = config.get("metadata") or {}
    for name in ("storage", "data"):
        place = metadata.get(name)
        if not isinstance(place, str) or not place:
            yield f"metadata.{name}: is missing; name a bucket (s3://...) or a folder that all machines share"
        elif "://" not in place and metadata.get("shared_folder") is not True:
            yield (
                f"metadata.{name} = {place}: a folder of one machine, lost to the others; name a bucket, or if all "
                "machines mount it there, add metadata.shared_folder: true"
            )
        elif "://" not in place and not place.startswith("/"):
            yield f"metadata.{name} = {place}: must be absolute, as jobs run in a folder of Ray's"


def _access(config: Tree) -> Iterator[str]:
    if (config.get("file_mounts") or {}).get(_TOKEN) != _TOKEN:
        yield f"file_mounts: add {_TOKEN}: {_TOKEN}, without which the nodes refuse each other"
    if not (config.get("auth") or {}).get("ssh_user"):
        yield "auth.ssh_user: is missing; whom to log in as, e.g. ubuntu"


def _secrets(tree: Tree) -> Iterator[str]:
    for field, text in _texts(tree):
        name = field.rsplit(".", 1)[-1]
        if _SECRET.search(text) or (_SECRET_NAME.search(name) and not text.startswith(("~", "/"))):
            yield f"{field}: holds a secret; keep it in a file outside the repository and name that"


def _files(config: Tree, root: Path) -> Iterator[str]:
    mounts: Tree = config.get("file_mounts") or {}
    for there, here in mounts.items():
        if here != _TOKEN and not (root / os.path.expanduser(here)).exists():
            yield f"file_mounts.{there}: {here} is not there; name a file of this machine"
    for name in ("pyproject.toml", "constraints.txt"):
        if mounts.get(f"~/zfdist/{name}") is None:
            yield f"file_mounts: add ~/zfdist/{name}: {name}, where nodes read the versions to install"
    commands = {k: v for k, v in config.items() if k.endswith("_commands")}
    for field, text in _texts(commands):
        for script in re.findall(r"~/zfdist/[\w.-]+\.sh", text):
            if script not in mounts:
                yield f"{field}: {script} does not reach the nodes; add it to file_mounts"


def _placeholders(config: Tree) -> Iterator[str]:
    for field, text in _texts(config):
        if placeholder := _PLACEHOLDER.search(text):
            yield f"{field}: still has {placeholder.group()}; put your own there"


def _texts(tree: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a tree with the dotted name of its field."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, f"{field}.{key}" if field else str(key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _texts(value, f"{field}[{i}]")
    elif isinstance(tree, str):
        yield field, tree


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


def _python(root: Path) -> str:
    """Return e.g. "311"."""
    match = re.search(r"3\.(\d+)", _project(root)["requires-python"])
    if match is None:
        raise ClusterError("pyproject.toml: requires-python names no version 3.x")
    return f"3{match.group(1)}"


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
