"""The files that machines read: each shipped one is sound, and each rule finds the one thing that breaks it."""

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import nodes
from cluster.provision import cluster_file, lint, up_down
from cluster.session import ClusterError

ROOT = Path(__file__).parents[2]
OVERLAYS = [None, *sorted(ROOT.glob("cluster/*.yaml"))]
CLOUDS = [overlay for overlay in OVERLAYS if overlay is None or overlay.stem in ("gcp", "azure")]
KUBERAY = sorted(ROOT.glob("cluster/kuberay/*.yaml"))


def shipped(overlay: Path | None = None) -> dict[str, Any]:
    return cluster_file.read(ROOT / "ray-cluster.yaml", overlay)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name if p else "aws")
def test_shipped_cluster_files_are_sound(overlay: Path | None) -> None:
    assert lint.cluster_findings(shipped(overlay), ROOT) == []


def test_all_variants_are_there() -> None:
    assert {p.stem for p in OVERLAYS if p} == {"gcp", "azure", "local"} and len(KUBERAY) == 2


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.name if p else "aws")
def test_shipped_cluster_files_name_what_to_fill_in(overlay: Path | None) -> None:
    findings = lint.cluster_findings(shipped(overlay), ROOT, ready=True)
    assert findings and all("put your own there" in finding for finding in findings)


@pytest.mark.parametrize("overlay", CLOUDS, ids=lambda p: p.stem if p else "aws")
def test_on_every_cloud_one_line_turns_on_what_stands_in_for_spot(overlay: Path | None) -> None:
    config = shipped(overlay)
    on_demand, spot = config["available_node_types"]["gpu-on-demand"], config["available_node_types"]["gpu"]
    assert on_demand["max_workers"] == 0 and [kind.name for kind in nodes.autoscaler_of(config).types] == ["gpu"]
    on_demand["max_workers"] = 8
    assert lint.cluster_findings(config, ROOT) == []
    kinds = {kind.name: kind for kind in nodes.autoscaler_of(config).types}
    assert kinds["gpu-on-demand"].asked_after_s == 300 and kinds["gpu"].asked_after_s is None
    assert on_demand["resources"] == spot["resources"] and spot["priority"] == 1
    assert "spot" in str(spot["node_config"]).lower() and "spot" not in str(on_demand["node_config"]).lower()


def test_overlays_hold_only_what_differs() -> None:
    same = {"cluster_name", "file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"}
    for overlay in OVERLAYS[1:]:
        assert overlay is not None and not same & yaml.safe_load(overlay.read_text()).keys()


@pytest.mark.parametrize("path", KUBERAY, ids=lambda p: p.name)
def test_shipped_kuberay_files_are_sound(path: Path) -> None:
    assert lint.kuberay_findings(path, ROOT) == []


def test_the_image_is_sound() -> None:
    assert lint.dockerfile_findings(ROOT / "cluster/Dockerfile", ROOT) == []


@pytest.mark.parametrize("script", ["setup-node.sh", "start-ray.sh", "setup-machine.sh", "slurm/train.sbatch"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / "cluster" / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", ROOT / "cluster" / script], check=True)


def test_files_that_the_files_of_clusters_name_are_there() -> None:
    for path in [
        ROOT / "ray-cluster.yaml",
        *(p for p in (ROOT / "cluster").rglob("*") if p.suffix in (".yaml", ".sh")),
    ]:
        named = re.findall(r"(?<![\w/~.-])(?:cluster|docs|jobs|tests)/[\w./-]+\.\w+", path.read_text())
        assert not [name for name in named if not (ROOT / name).exists()], path


def test_skypilot_s_file_holds_together() -> None:
    """What its schema knows, test_other_ways.py asks; here: what it names is there, and what it runs is said."""
    task = yaml.safe_load((ROOT / "cluster/skypilot/train.yaml").read_text())
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["run"])) - {"PWD"}
    assert {name for name in used if not name.startswith("SKYPILOT_")} == task["envs"].keys()
    for file in ("pyproject.toml", "constraints.txt", "cluster/setup-node.sh"):
        assert file in task["setup"] and (ROOT / task["workdir"] / file).exists()
    assert "://" in task["envs"]["RUNS"] and [way["use_spot"] for way in task["resources"]["ordered"]] == [True, False]


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = to

    return change


def _replace(field: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        assert any(old in command for command in config[field])
        config[field] = [command.replace(old, new) for command in config[field]]

    return change


GPU = ("available_node_types", "gpu")
BROKEN = {
    "unknown field": (_set("max_wrokers", to=3), "the file: Ray refuses it: Additional properties"),
    "wrong type": (_set("max_workers", to="many"), "max_workers: Ray refuses it: 'many' is not of type 'integer'"),
    "no such head": (_set("head_node_type", to="hed"), "Ray refuses it: `head_node_type` must be one of"),
    "other version": (
        _set("head_setup_commands", to=["pip install ray==2.59.0"]),
        "ray==2.59.0, but constraints.txt has",
    ),
    "other image": (
        _set("docker", to={"image": "rayproject/ray:2.59.0-py311", "container_name": "ray"}),
        "docker.image: image with Ray 2.59.0",
    ),
    "other python": (
        _set("docker", to={"image": "rayproject/ray:2.60.0-py312", "container_name": "ray"}),
        "docker.image: image with Python 312; zfdist needs -py311",
    ),
    "min > max": (
        lambda c: c[GPU[0]]["gpu"].update(min_workers=5, max_workers=4),
        "gpu: min_workers 5 > max_workers 4",
    ),
    "max > all": (_set(*GPU, "max_workers", to=20), "gpu.max_workers = 20: more than max_workers = 8"),
    "fallback of no time": (
        _set("available_node_types", "gpu-on-demand", "labels", to={"zfdist/asked-after-s": "5 min"}),
        "gpu-on-demand.labels: zfdist/asked-after-s = '5 min': whole seconds",
    ),
    "nothing but fallback": (
        _set(*GPU, "labels", to={"zfdist/asked-after-s": "60"}),
        "available_node_types: all but the head stand in for others",
    ),
    "head trains": (
        _set("available_node_types", "head", "resources", to={"CPU": 4}),
        'head.resources: must have "CPU": 0',
    ),
    "head trains too": (
        _replace("head_start_ray_commands", "--num-cpus=0 ", ""),
        "head_start_ray_commands: add --num-cpus=0",
    ),
    "no autoscaling": (
        _replace("head_start_ray_commands", "--autoscaling-config", "--config"),
        "head_start_ray_commands: add --autoscaling-config=~/ray_bootstrap_config.yaml",
    ),
    "open dashboard": (
        _replace("head_start_ray_commands", "=127.0.0.1", "=0.0.0.0"),
        "--dashboard-host=0.0.0.0 opens it",
    ),
    "plain ray start": (
        _replace("worker_start_ray_commands", "bash ~/zfdist/start-ray.sh ", ""),
        "worker_start_ray_commands: start Ray by",
    ),
    "no tokens": (
        _replace("worker_start_ray_commands", "bash", "RAY_AUTH_MODE=disabled bash"),
        "RAY_AUTH_MODE=disabled opens",
    ),
    "no token file": (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "file_mounts: add ~/.ray/auth_token"),
    "no user": (_set("auth", to={}), "auth.ssh_user: is missing"),
    "no storage": (_set("metadata", "storage", to=None), "metadata.storage: is missing"),
    "storage of one machine": (
        _set("metadata", "storage", to="/home/me/runs"),
        "metadata.storage = /home/me/runs: a folder of one machine",
    ),
    "relative storage": (
        lambda c: c["metadata"].update(data="data", shared_folder=True),
        "metadata.data = data: must be absolute",
    ),
    "key": (_set("provider", "note", to="AKIA" + "ABCDEFGHIJKLMNOP"), "provider.note: holds a secret"),
    "password": (_set("provider", "admin_password", to="hunter2"), "provider.admin_password: holds a secret"),
    "token": (_set("metadata", "note", to="0f" * 32), "metadata.note: holds a secret"),
    "script absent": (
        _set("file_mounts", "~/zfdist/start-ray.sh", to="cluster/strat-ray.sh"),
        "cluster/strat-ray.sh is not there",
    ),
    "script not mounted": (
        lambda c: c["file_mounts"].pop("~/zfdist/setup-node.sh"),
        "setup_commands[0]: ~/zfdist/setup-node.sh does not reach the nodes",
    ),
    "versions not mounted": (
        lambda c: c["file_mounts"].pop("~/zfdist/constraints.txt"),
        "file_mounts: add ~/zfdist/constraints.txt",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_finds_its_break_and_no_other(name: str) -> None:
    config = copy.deepcopy(shipped())
    change, expected = BROKEN[name]
    change(config)
    findings = lint.cluster_findings(config, ROOT)
    assert len(findings) == 1 and expected in findings[0], findings


def test_on_machines_of_ours_somebody_must_train() -> None:
    config = shipped(ROOT / "cluster/local.yaml")
    config["provider"]["worker_ips"] = []
    assert "provider.worker_ips: is empty" in " ".join(lint.cluster_findings(config, ROOT))


KUBERAY_BROKEN = {
    "rayVersion": ('rayVersion: "2.60.0"', 'rayVersion: "2.50.0"', "rayVersion = 2.50.0: must be 2.60.0"),
    "token": ("mode: token", "mode: disabled", "authOptions.mode: must be token"),
    "head trains": ('num-cpus: "0"', 'num-cpus: "4"', "rayStartParams.num-cpus"),
    "replicas": ("minReplicas: 4", "minReplicas: 5", "needs minReplicas <= replicas <= maxReplicas"),
    "storage": ("--runs s3://YOUR-BUCKET/zfdist/runs --data.root s3://", "--runs runs --data.root data/", "no disk"),
    "open ports": ("labels: {zfdist: node}", "labels: {zfdist: no}", "no NetworkPolicy of this file selects its pods"),
    "our version": ("zfdist:0.1.0", "zfdist:0.0.9", "zfdist:0.0.9, but pyproject.toml has"),
}


@pytest.mark.parametrize("name", KUBERAY_BROKEN)
def test_each_rule_of_kuberay_finds_its_break(name: str, tmp_path: Path) -> None:
    old, new, expected = KUBERAY_BROKEN[name]
    text = (ROOT / "cluster/kuberay/ray-job.yaml").read_text()
    assert old in text
    (tmp_path / "job.yaml").write_text(text.replace(old, new))
    findings = lint.kuberay_findings(tmp_path / "job.yaml", ROOT)
    assert findings and all(f.startswith("job.yaml: ") and expected in f for f in findings)


def test_an_image_with_another_ray_is_found(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM rayproject/ray:2.9.0-py310\n")
    found = lint.dockerfile_findings(tmp_path / "Dockerfile", ROOT)
    assert len(found) == 2 and "2.9.0" in found[0] and "py311" in found[1]


def test_an_overlay_replaces_whole_keys_and_null_removes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("cluster_name: a\nprovider: {type: aws, region: x}\nmax_workers: 3\n")
    (tmp_path / "b.yaml").write_text("provider: {type: local}\nmax_workers: null\nauth: {ssh_user: me}\n")
    config = cluster_file.read(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert config == {"cluster_name": "a", "provider": {"type": "local"}, "auth": {"ssh_user": "me"}}


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "cluster_name: [x]\nprovider: {type: aws}", "cluster_name: x"])
def test_a_file_that_is_no_cluster_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ClusterError, match=re.escape(str(tmp_path / "c.yaml"))):
        cluster_file.load(tmp_path / "c.yaml")
    with pytest.raises(ClusterError, match="is not here; run this in a checkout"):
        cluster_file.load(tmp_path / "none.yaml")


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    assert up_down.make_token(path) and not up_down.make_token(path)
    assert len(path.read_text()) >= 32 and path.stat().st_mode & 0o777 == 0o600
