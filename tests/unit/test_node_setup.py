"""setup-node.sh as a node runs it, and Ray's AWS provider on our file, against a cloud that moto plays."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.provision import cluster_file

ROOT = Path(__file__).parents[2]


def set_up(home: Path) -> str:
    """Run setup-node.sh in a home; return what it says."""
    done = subprocess.run(
        ["bash", ROOT / "cluster/setup-node.sh"],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_environment_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "zfdist"
    folder.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "venv").symlink_to(sys.prefix)
    (tmp_path / ".bashrc").write_text("# mine\n")
    for _ in range(2):
        assert "has the pinned versions" in set_up(tmp_path)
    bashrc = (tmp_path / ".bashrc").read_text()
    assert bashrc.count("zfdist/venv/bin") == 1 and bashrc.endswith("# mine\n")


def test_an_environment_is_made_and_brought_to_new_versions(tmp_path: Path) -> None:
    folder = tmp_path / "zfdist"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["idna>=3", "six"]\n')
    for version in ("3.19", "3.20"):
        (folder / "constraints.txt").write_text(f"idna=={version}\nsix==1.17.0\n")
        assert "installing into" in set_up(tmp_path)
        (found,) = (folder / "venv").glob("lib/python3.11/site-packages/idna-*.dist-info")
        assert found.name == f"idna-{version}.dist-info"
        assert "has the pinned versions" in set_up(tmp_path)


@pytest.mark.parametrize("is_root", [True, False])
def test_a_machine_gets_or_is_told_of_compilers_and_headers(tmp_path: Path, is_root: bool) -> None:
    """As on a bare one: Python is there, its headers and compilers are not."""
    headers, asked = "*sysconfig*) echo /nowhere;;", tmp_path / "asked"
    for name, body in (
        ("python3.11", f'case "$*" in {headers} *) exec {sys.executable} "$@";; esac'),
        ("apt-get", f'echo "$*" >>{asked}'),
        ("id", f"echo {0 if is_root else 1000}"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = [shutil.which("bash") or "bash", ROOT / "cluster/setup-machine.sh"]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if is_root:
        assert "gcc g++ python3.11-dev" in asked.read_text()
    else:
        assert not asked.exists() and "sudo apt-get install gcc g++ python3.11-dev" in done.stderr


def test_the_files_that_a_node_gets_are_enough_for_the_watch_of_notices(tmp_path: Path) -> None:
    """It starts before any job has brought the code."""
    mounts = cluster_file.read(ROOT / "ray-cluster.yaml")["file_mounts"]
    for there, here in mounts.items():
        if there.startswith("~/zfdist/"):
            target = tmp_path / there.removeprefix("~/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / here, target)
    command = [sys.executable, "-m", "cluster.provision.preemption", "--help"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(command, cwd=tmp_path / "zfdist", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--node-id" in done.stdout, done.stderr


def test_ray_starts_an_on_demand_head_and_spot_workers_on_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own bootstrap and node provider, on the shipped file."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # where the launcher puts the key that it makes
    (tmp_path / ".ssh").mkdir()
    config = cluster_file.read(ROOT / "ray-cluster.yaml")
    region = config["provider"]["region"]
    with moto.mock_aws():
        boto3.client("iam", region_name=region).create_instance_profile(InstanceProfileName="zfdist-node")
        _start_one_of_each(config)
        reservations = boto3.client("ec2", region_name=region).describe_instances()["Reservations"]
    started = {i["InstanceType"]: i for reservation in reservations for i in reservation["Instances"]}
    assert started["g5.2xlarge"]["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in started["m6i.xlarge"]
    for instance in started.values():
        assert instance["IamInstanceProfile"]["Arn"].endswith("instance-profile/zfdist-node")
        assert instance["ImageId"].startswith("resolve:ssm:")


def _start_one_of_each(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    resolved = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config)))
    provider = AWSNodeProvider(resolved["provider"], resolved["cluster_name"])
    for kind, role in (("head", "head"), ("gpu", "worker")):
        node = copy.deepcopy(resolved["available_node_types"][kind]["node_config"])
        provider.create_node(node, {"ray-node-type": role, "ray-user-node-type": kind}, 1)
