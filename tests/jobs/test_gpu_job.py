"""`jobs.gpu` without a GPU: it says so, and its logic runs on a small case of real training."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import gpu


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jobs.gpu", *argv], cwd=gpu.ROOT, capture_output=True, text=True)


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_without_a_gpu_it_is_one_sentence(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 1 and done.stderr.startswith("error: no GPU") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_on_a_cpu_runs_are_repeated_and_resumed_with_equal_bytes(tmp_path: Path) -> None:
    done = run("--cpu", "--steps", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    by_hand, native, measured = found["runs"]
    for case in (by_hand, native):
        assert case["again_is_equal"] is case["resumed_is_equal"] is True
    assert measured["again_is_equal"] is None and measured["error"] is None
    assert abs(by_hand["elbo_nats"] - native["elbo_nats"]) < 1e-3 * abs(native["elbo_nats"])
    text = (tmp_path / "gpu.md").read_text()
    assert "- a run that was cut and resumed ends in the bytes of an unbroken one: 2 of 2" in text
    title, *rows = measured["measured"]
    assert title in text and {row.split()[0] for row in rows} == {"native", "bptt", "reference"}
    assert text.count("| yes | yes |") == 2 and found["machine"]["torch"] in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("code", "limit_s", "said"),
    [
        ("import time; time.sleep(60)", 1.0, "did not end within 1 s"),
        ("raise SystemExit('bad')", 60.0, "exit code 1: bad"),
    ],
)
def test_a_part_that_hangs_or_crashes_is_a_line_of_the_report(code: str, limit_s: float, said: str) -> None:
    ended = gpu._part("part", [sys.executable, "-c", code], time.monotonic() + 60, limit_s)
    assert ended.error == said
    case = {"implementation": "graph", "precision": "fp16", "zero_stage": 0, "error": ended.error}
    assert f"| graph, fp16, ZeRO 0 |  |  |  |  | {said} |" in gpu.report({"machine": {}, "runs": [case]})
    late = gpu._part("part", [sys.executable, "-c", code], time.monotonic() - 1, limit_s)
    assert late.error == "not begun: the time was over"


def test_what_did_not_hold_is_named() -> None:
    case = {
        "implementation": "triton",
        "precision": "bf16",
        "zero_stage": 1,
        "error": None,
        "elbo_nats": 1.0,
        "step_s": 0.1,
    }
    runs = [case | {"again_is_equal": True, "resumed_is_equal": False}]
    text = gpu.report({"machine": {"GPU": "X"}, "runs": runs})
    assert (
        "unbroken one: 0 of 1; not by triton, bf16, ZeRO 1" in text
        and "equal bytes: 1 of 1" in text
        and "| NO |" in text
    )
