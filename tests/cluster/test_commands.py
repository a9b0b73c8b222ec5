"""jobs.train as typed on a Ray: signals, resumption, and what the cluster refuses."""

import json
import signal
from pathlib import Path

import commands
import pytest

from zfdist.config import Config


def test_sigterm_saves_and_the_same_command_goes_on(cluster: str, slow_config: Config, tmp_path: Path) -> None:
    words = ["demo", "--name", "r", *commands.flags(slow_config)]
    folder = tmp_path / "runs" / "r"
    process = commands.start("train", *words, folder=tmp_path)
    commands.wait_for(lambda: (folder / "metrics.jsonl").exists(), "first metrics", within_s=120)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "saving, then stopping" in out and "the same command goes on from there" in out
    (stopped_at,) = [int(p.name[5:]) for p in (folder / "checkpoints").iterdir()][-1:]
    assert f"stopped at step {stopped_at};" in out and stopped_at < 600
    commands.wait_for(commands.nothing_held, "all CPUs free", within_s=15)

    longer = [*words, "--checkpoint.keep-last", "3"]
    code, out = commands.run("train", *longer, "--profile", folder=tmp_path)
    assert code == 0, out
    profile = [f"rank-0{kind}" for kind in ("-breakdown.json", ".json.gz")]
    assert sorted(path.name for path in (folder / "profile").iterdir()) == profile
    assert "a trace of 5 steps is in" in out and "gradient reduction" in out
    assert "changed since the last time: checkpoint.keep_last 10 -> 3" in out
    assert "valid elbo" in out and "ETA" in out and "finished at step 600" in out
    assert json.loads((folder / "result.json").read_text())["state"] == "finished"

    code, out = commands.run("train", *longer, folder=tmp_path)
    assert code == 0 and "is finished (600 steps); raise --train.steps to go on" in out


def test_ctrl_c_saves_and_says_that_it_was_interrupted(cluster: str, slow_config: Config, tmp_path: Path) -> None:
    process = commands.start("train", "demo", "--name", "r", *commands.flags(slow_config), folder=tmp_path)
    folder = tmp_path / "runs" / "r"
    commands.wait_for(lambda: (folder / "metrics.jsonl").exists(), "first metrics", within_s=120)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in out, out
    assert "Traceback" not in out and list((folder / "checkpoints").iterdir())
    assert not (folder / "hangs").exists()


def test_no_cluster_at_the_address(slow_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["demo", "--name", "x", "--address", "127.0.0.1:1", *commands.flags(slow_config)]
    code, out = commands.run("train", *words, folder=tmp_path)
    assert code == 1 and "error: no Ray cluster at '127.0.0.1:1'" in out and "Traceback" not in out, out


def test_more_workers_than_the_cluster_has(cluster: str, slow_config: Config, tmp_path: Path) -> None:
    words = ["demo", "--name", "x", "--workers", "64", *commands.flags(slow_config)]
    code, out = commands.run("train", *words, folder=tmp_path)
    assert code == 1 and "the cluster has 1 machine with 2 CPUs and no GPU, room for 2" in out
    assert "Traceback" not in out
