"""The benchmark's front door, and that the rivals it times compute the same numbers; no time is asserted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.bench", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_core_compares_all_implementations_with_the_published_loop():
    out = bench("core", "--size", "hidden32", "--repeats", "1")
    assert out.returncode == 0, out.stderr
    for row in ("naive loop, as published", "hoisted loop", "bptt", "native", "nn.LSTM without latents", "floor"):
        assert row in out.stdout


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
            "systems and all",
        ),
        (["core", "--size", "huge"], "--size huge: must be one of timit, imdb"),
        (["core", "--repeats", "0"], "--repeats 0: must be 1 or more"),
        (["core", "--threads", "-1"], "--threads -1: must be 1 or more"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(argv, sentence):
    out = bench(*argv)
    assert out.returncode == 2
    assert sentence in out.stderr
    assert "Traceback" not in out.stderr


def test_without_a_checkout_it_says_where_benchmarks_live(tmp_path):
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    out = bench("core", cwd=tmp_path)
    assert out.returncode == 2
    assert "run this in a checkout of the project" in out.stderr
