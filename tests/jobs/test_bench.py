"""The benchmark's front door, and that the rivals it times compute the same numbers; no time is asserted."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs import bench as job

ROOT = Path(__file__).parents[2]


def bench(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.bench", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.drill
def test_core_compares_all_implementations_with_the_published_loop():
    out = bench("core", "--size", "hidden32", "--repeats", "1")
    assert out.returncode == 0, out.stderr
    for row in ("naive loop, as published", "hoisted loop", "bptt", "native", "nn.LSTM without latents", "floor"):
        assert row in out.stdout


def test_the_rows_for_a_gpu_compute_gradients_as_good_as_their_precision(monkeypatch):
    """On a CPU, where products of narrow operands are the same, TF32 is exact and nothing is recorded."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    bench_core, core_case = (importlib.import_module(name) for name in ("bench_core", "core_case"))
    case = core_case.Case(core_case.SIZES["hidden16"](), torch.device("cpu"))
    exact, errors = case.exact_gradient(), {}
    for candidate in core_case.candidates(torch.device("cuda")):
        passes = bench_core._passes(case, candidate._replace(recorded=False))
        errors[candidate.name] = case.error(candidate, passes.both, exact)
    assert errors["graph, fp32"] < errors["graph, fp16"] < errors["graph, bf16"]
    half = next(c for c in core_case.candidates(torch.device("cuda")) if c.name == "graph, fp16")
    passes = bench_core._passes(case, half)
    with pytest.raises(AssertionError, match="graph, fp16: gradient off by"):
        case.error(half, passes.both, 1.1 * exact)


def test_systems_are_compared_at_an_equal_number_of_parameters():
    out = bench("systems", "--size", "hidden32", "--repeats", "1")
    assert out.returncode == 0, out.stderr
    rows = [line.split("\u2502") for line in out.stdout.splitlines() if line.startswith("\u2502")]
    sizes = {row[1].strip(): int(row[3].replace(",", "")) for row in rows}
    assert len(sizes) == 12
    assert max(sizes.values()) <= 1.1 * min(sizes.values()), sizes


def test_generation_by_every_kind_of_product_gives_the_same():
    out = bench("generate", "--size", "hidden64", "--repeats", "1")
    assert out.returncode == 0, out.stderr
    for row in ("torch, 1 at a time", "torch, products by oneDNN, 32 at a time", "cell in C++, 32 at a time"):
        assert row in out.stdout


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["corr"],
            "'corr' is not a benchmark; there are checkpoint, core, evaluate, generate, loader, scaling, startup, "
            "sweep, systems and all",
        ),
        (["core", "--size", "huge"], "--size huge: must be one of timit, imdb"),
        (["core", "--repeats", "0"], "--repeats 0: must be 1 or more"),
        (["core", "--threads", "-1"], "--threads -1: must be 1 or more"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(argv, sentence, capsys):
    assert job.main(argv) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_without_a_checkout_it_says_where_benchmarks_live(tmp_path):
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    out = bench("core", cwd=tmp_path)
    assert out.returncode == 2
    assert "run this in a checkout of the project" in out.stderr
