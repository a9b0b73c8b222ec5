"""The demo from start to end with a tiny network: the four phases, their files, and the same command again."""

import json
import os
import subprocess
import sys
from pathlib import Path

TINY = ["--model.hidden", "8", "--model.z-dim", "2", "--model.mlp-dim", "8", "--train.steps", "4"]
TINY += ["--train.log-every", "2", "--train.validate-every", "2", "--checkpoint.every-steps", "2"]


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.demo", "--", *TINY]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_the_demo_and_the_same_again(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    for phase in ("[1/4] speech to Arrow shards", "[2/4] a sweep", "[3/4] the best trial", "[4/4] figures"):
        assert phase in first.stdout
    assert "Three commands to try next" in first.stdout
    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    assert len(results) == 8 and all(result["state"] in ("finished", "stopped") for result in results)
    values = [result["values"] for result in results]
    assert {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.kl.kind": "constant"} in values
    best = max(results, key=lambda result: result["valid/elbo_nats"])
    assert results[0] == best
    assert json.loads((tmp_path / "runs/demo/test.json").read_text())["sequences"] == 24
    report = tmp_path / "runs/demo/report"
    assert {p.name for p in report.iterdir()} >= {"report.html", "report.md", "figures", "samples"}
    assert {"learning-curves.png", "kl.png", "sweep.png"} <= {p.name for p in report.glob("figures/*")}
    trained = {p: p.read_bytes() for p in tmp_path.glob("runs/demo/trials/*/metrics.jsonl")}
    again = demo(tmp_path)
    assert again.returncode == 0 and "already made from this input" in again.stdout
    assert {p: p.read_bytes() for p in trained} == trained
