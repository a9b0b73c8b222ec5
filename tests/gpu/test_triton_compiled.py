"""Every Triton kernel as a GPU would get it: compiled for three generations of GPUs, by compile_kernels.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install the version that torch names")
HERE = Path(__file__).parent
SHARED_BYTES = 48 * 2**10  # what a program may have on every one of them without being asked for
REGISTERS = 64  # of 65,536: with 128 threads a program, 8 programs at a time


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    command = [sys.executable, str(HERE / "compile_kernels.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_all_kernels_fit_every_gpu_without_spills(rows: list[dict[str, Any]]) -> None:
    assert {row["architecture"] for row in rows} == {80, 90, 100}
    assert len(rows) == 3 * (6 * (3 * 3 + 1) + 1)
    for row in rows:
        assert row["cubin_bytes"] > 0 and row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES and row["registers"] <= REGISTERS, row


def test_all_values_are_loaded_several_at_once(rows: list[dict[str, Any]]) -> None:
    """Also 500 units, which 16 does not divide, as Triton asks by itself."""
    for row in rows:
        if row["kernel"] != "noise" and row["operand"] != "fp64":
            assert row["vector_loads"] == row["loads"] > 0, row


def test_noise_is_made_by_the_exact_functions_that_torch_uses(rows: list[dict[str, Any]]) -> None:
    noise = [row for row in rows if row["kernel"] == "noise"]
    assert len(noise) == 3 and all(row["approximate"] == [] for row in noise)
