"""Ray on machines, and at addresses, as people have them: it starts and is joined, or one sentence says why not."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import commands
import pytest

from zfdist.config import Config

ROOT = Path(__file__).parents[2]
LONG = "slurm_jobdir/1355700/tmp.t0016/net/people/somebody/scratch/longer/still"
START = """
from cluster import session
from cluster.session import ClusterError
try:
    with session.connect(None, cpus=1):
        import ray
        print("joined", ray.cluster_resources()["CPU"])
except ClusterError as error:
    print("error:", error)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def start(folder: Path, *prefix: str, **environment: str | None) -> str:
    """Start a Ray in a process of its own, in an environment that is changed so; return all that it says."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "TMPDIR"}
    env = {k: v for k, v in (clean | {"PYTHONPATH": str(ROOT)} | environment).items() if v is not None}
    words = [*prefix, sys.executable, "-c", START]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def test_a_long_tmpdir_and_a_user_without_name_or_home_are_mended(short: Path) -> None:
    (short / LONG).mkdir(parents=True)
    nobody = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
    if shutil.which("unshare") is None or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        nobody = ()
    told = start(short, *nobody, TMPDIR=str(short / LONG), HOME=None, USER=None, LOGNAME=None)
    assert f"TMPDIR={short / LONG} is too long for Ray's sockets" in told
    assert "Ray's files go to /" in told and "joined 1.0" in told


@pytest.mark.parametrize(
    ("environment", "prefix", "why"),
    [
        ({"RAY_TMPDIR": f"/var/tmp/{LONG}"}, (), "is too long for Ray's sockets (80 bytes); set RAY_TMPDIR to a"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, (), "RAY_TMPDIR=/proc/nowhere cannot hold"),
        ({}, ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh"), "a process may open 64 files here, and Ray needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_mended_is_said(
    environment: Mapping[str, str], prefix: tuple[str, ...], why: str, short: Path
) -> None:
    told = start(short, *prefix, **environment)
    assert told.startswith("error: Ray cannot start on this machine: ") and why in told and told.count("\n") == 1


def test_what_ray_says_when_it_fails_becomes_a_sentence_with_its_log(short: Path) -> None:
    """A name for RAY_gcs_storage that Ray does not know ends its GCS, of which it tells only its log."""
    told = start(short, RAY_TMPDIR=str(short), RAY_gcs_storage="nonsense")
    assert told.splitlines()[-1].startswith("error: Ray cannot start on this machine: ") and f"({short}/ray/" in told


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "ray:// is for Ray Client"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, "http:// is for a dashboard"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "that cluster refuses our token; put the cluster's"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "that cluster asks for a token; put the cluster's"),
    ],
)
def test_clusters_that_cannot_be_joined(
    cluster: str,
    environment: dict[str, str],
    why: str,
    slow_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out = commands.run("train", "demo", "--name", "x", *commands.flags(slow_config), folder=tmp_path)
    last = out.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in out, out
    assert last.startswith("error: no Ray cluster at '") and why in last and "(RAY_ADDRESS)" in last, out
