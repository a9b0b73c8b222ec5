"""Ways to machines other than Ray's launcher: SkyPilot, Slurm, KubeRay; as far as their tools can be here.

SkyPilot is asked where it is installed: in this environment, or in that of the Python which SKYPILOT_PYTHON names (it
wants other versions of what we use). KUBERAY_CRDS names a folder with the operator's ray.io_*.yaml.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import one_slurm
import pytest
import yaml
from one_slurm import asked
from waiting import last_lines, wait_for

from zfdist.checkpoint import folder as checkpoint

ROOT = Path(__file__).parents[2]
SKY = ROOT / "cluster/skypilot/train.yaml"
STEPS = 8

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


def words(store: Path, runs: Path, **changes: Any) -> list[str]:
    """Return the command line of a small run on two workers."""
    config = harness.tiny_config(store, engine__threads_per_worker=1, **changes)
    flags = [word for name, value in config.flat().items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["demo", "--name", "run", "--runs", str(runs), *flags]


def weights(runs: Path, step: int = STEPS) -> bytes:
    return (checkpoint.folder_of(runs / "run", step) / checkpoint.WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def by_torchrun(store: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run under torchrun."""
    runs = tmp_path_factory.mktemp("torchrun")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jobs.train"]
    subprocess.run([sys.executable, *launcher, *words(store, runs), "--no-ray"], cwd=ROOT, check=True)
    return weights(runs)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if (reason := one_slurm.why_not()) is not None:
        pytest.skip(reason)
    with one_slurm.slurm(tmp_path_factory.mktemp("slurm")):
        yield


def submit(log: Path, *given: str) -> str:
    """Submit the shipped file for two nodes without GPUs; return the job's number."""
    options = ["--gpus-per-task=0", "--cpus-per-task=1", f"--output={log}", "--chdir", str(ROOT)]
    number = asked("sbatch", "--parsable", *options, str(ROOT / "cluster/slurm/train.sbatch"), *given)
    assert number.isdigit(), number
    return number


def state(number: str) -> str:
    return asked("squeue", "-h", "-t", "all", "-j", number, "-o", "%T")


@pytest.mark.usefixtures("slurm")
def test_srun_starts_workers_that_join(store: Path, tmp_path: Path, by_torchrun: bytes) -> None:
    log = tmp_path / "job.log"
    number = submit(log, *words(store, tmp_path / "runs"))
    wait_for(lambda: state(number) == "COMPLETED", "end of the job", 200, log)
    assert weights(tmp_path / "runs") == by_torchrun, "the same bits, whoever started the workers"


@pytest.mark.usefixtures("slurm")
def test_before_its_time_is_up_a_job_saves_and_queues_again(store: Path, tmp_path: Path) -> None:
    log, runs = tmp_path / "job.log", tmp_path / "runs"
    long = words(store, runs, train__steps=4000, train__validate_every=4000, checkpoint__every_steps=4000)
    number = submit(log, *long)
    wait_for(lambda: (runs / "run/metrics.jsonl").exists(), "training", 200, log)
    asked("scancel", "--signal=USR1", "--batch", number)  # what Slurm sends of itself then
    wait_for(lambda: state(number) == "PENDING", "the job in the queue again", 100, log)
    (saved,) = checkpoint.steps(runs / "run")
    assert 0 < saved < 4000
    asked("scontrol", "update", f"JobId={number}", "StartTime=now")  # Slurm itself waits for two minutes
    wait_for(lambda: f"step {saved}" in log.read_text().split("stopped", 1)[-1], "going on", 200, log)
    asked("scancel", number)


@pytest.mark.usefixtures("slurm")
def test_a_command_that_is_refused_ends_the_job_and_does_not_queue_it_again(store: Path, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    number = submit(log, *words(store / "none", tmp_path / "runs"))
    wait_for(lambda: state(number) == "FAILED", "end of the job", 200, log)
    said = log.read_text()
    assert "Traceback" not in said and f"error: {store / 'none'}" in said, last_lines(said)


def _sky() -> str:
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True).returncode:
        pytest.skip("no SkyPilot: name a Python that has it in SKYPILOT_PYTHON")
    return python


def test_skypilot_takes_its_file() -> None:
    code = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print([r.use_spot for r in task.resources])"
    done = subprocess.run([_sky(), "-c", code, str(SKY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[True, False]", "spot first"


def test_what_skypilot_runs_on_two_machines_is_the_same_run(store: Path, tmp_path: Path, by_torchrun: bytes) -> None:
    """Its commands, with the variables that it sets: two processes of this machine stand for machines."""
    (tmp_path / "zfdist").mkdir()
    (tmp_path / "zfdist/venv").symlink_to(Path(sys.executable).parents[1])
    task = yaml.safe_load(SKY.read_text())
    _, _, _, _, runs, *rest = words(store, tmp_path / "runs")
    given = {"NAME": "run", "RUNS": runs, "ARGUMENTS": " ".join(["demo", *rest])}
    assert given.keys() == task["envs"].keys()
    started = [
        subprocess.Popen(
            ["bash", "-c", task["run"]],
            cwd=ROOT,
            env=os.environ
            | given
            | {
                "HOME": str(tmp_path),
                "SKYPILOT_NUM_NODES": "2",
                "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
                "SKYPILOT_NUM_GPUS_PER_NODE": "1",
            },
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert weights(tmp_path / "runs") == by_torchrun


@pytest.mark.parametrize("path", sorted(ROOT.glob("cluster/kuberay/*.yaml")), ids=lambda path: path.name)
def test_kuberay_takes_its_files(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if "KUBERAY_CRDS" not in os.environ:
        pytest.skip("KUBERAY_CRDS names no folder with the operator's ray.io_*.yaml")
    for tree in yaml.safe_load_all(path.read_text()):
        if tree["apiVersion"] == "ray.io/v1":
            crd = Path(os.environ["KUBERAY_CRDS"], f"ray.io_{tree['kind'].lower()}s.yaml")
            (version,) = [v for v in yaml.safe_load(crd.read_text())["spec"]["versions"] if v["name"] == "v1"]
            jsonschema.Draft202012Validator(_closed(version["schema"]["openAPIV3Schema"])).validate(tree)


def _closed(schema: Any) -> Any:
    """Return a schema of Kubernetes that also refuses what it does not list, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed
