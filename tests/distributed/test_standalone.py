"""Runs without Ray: in this process alone and under torchrun; the same bits, files and sentences."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest

from jobs import train as train_job
from zfdist import launcher
from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config
from zfdist.launcher import Place, place

STEPS = 8


def train(folder: Path, config: Config, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    flags = [word for name, value in config.flat().items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "jobs.train", "demo", "--name", "run", "--no-ray", *flags, *words],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def said(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    return output


def weights(run: Path, step: int = STEPS) -> bytes:
    return (checkpoint.folder_of(run, step) / checkpoint.WEIGHTS).read_bytes()


def train_in_group(folder: Path, config: Config) -> None:
    from zfdist import train, world

    train.train(config, folder, world.connect(), harness.Recorder())


def test_alone_it_is_the_same_run_and_says_what_happens(store: Path, trained: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store)
    output = said(train(tmp_path, config))
    assert weights(tmp_path / "runs/run") == weights(trained)
    assert "step 8/8  valid elbo" in output and "finished at step 8: runs/run" in output
    assert "ray" not in output.lower()
    assert "is finished (8 steps)" in said(train(tmp_path, config))
    refused = said(train(tmp_path, config.with_values({"data.global_batch": 8})), code=1)
    assert "was trained with data.global_batch = 7" in refused and "Traceback" not in refused


def test_under_torchrun_two_workers_share_the_run_and_a_signal_saves_it(store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store, train__steps=4000, train__validate_every=4000, checkpoint__every_steps=4000)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = train(tmp_path, config, launcher=launcher)
    metrics = tmp_path / "runs/run/metrics.jsonl"
    deadline_s = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < deadline_s and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert "saving, then stopping" in output and "stopped at step" in output, output
    (step,) = checkpoint.steps(tmp_path / "runs/run")
    assert checkpoint.read_manifest(checkpoint.folder_of(tmp_path / "runs/run", step)).world_size == 2
    config = config.with_values({"train.steps": step + 2})
    said(train(tmp_path, config, "--workers", "2", launcher=launcher))
    harness.run_ranks(2, train_in_group, tmp_path / "unbroken", config)
    assert weights(tmp_path / "runs/run", step + 2) == weights(tmp_path / "unbroken", step + 2)


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (["--no-ray", "--workers", "2"], {}, "torchrun --nproc-per-node"),
        (["--no-ray", "--address", "auto"], {}, "only Ray does that"),
        (["--no-ray", "--max-failures", "1"], {}, "only Ray does that"),
        ([], {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "--no-ray"),
        (["--no-ray"], {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        (["--no-ray"], {"WORLD_SIZE": "two"}, "are damaged"),
    ],
)  # fmt: skip
def test_what_only_ray_does_is_refused(
    words: list[str], environ: dict[str, str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert train_job.main(["demo", "--name", "x", *words]) in (1, 2)
    assert message in capsys.readouterr().err


SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "node[007-009,12]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
}


def test_srun_says_who_a_worker_is_and_where_all_meet() -> None:
    assert place(SRUN) == Place(6, 7, 0, 1, ("node007", 20_529))
    first = SRUN | {
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_STEP_NODELIST": "gpu-a,gpu-b",
    }
    assert place(first) == Place(1, 7, 1, 2, ("gpu-a", 20_529))
    assert place(first | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9"}).meeting == ("10.0.0.1", 9)
    script = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")} | {"SLURM_NTASKS": "7"}
    assert place(script) == Place(), "the script of a job is one process"


def test_a_host_of_rank_0_that_nobody_knows_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert launcher.address_of("127.0.0.1") == "127.0.0.1"
    answer = tmp_path / "scontrol"
    answer.write_text("#!/bin/sh\necho NodeName=$3 NodeAddr=127.0.0.7 NodeHostName=$3\n")
    answer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launcher.address_of("node.invalid") == "127.0.0.7", "a node's name in Slurm need not be a host's"
    answer.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(launcher.LauncherError, match=r"MASTER_ADDR = node.invalid: .* knows no host of this name"):
        launcher.address_of("node.invalid")
    answer.write_text("#!/bin/sh\nexec sleep 600\n")  # as where its controller is down
    monkeypatch.setattr(launcher, "_SLURM_ANSWERS_S", 0.2)
    with pytest.raises(launcher.LauncherError, match="knows no host of this name"):
        launcher.address_of("node.invalid")
