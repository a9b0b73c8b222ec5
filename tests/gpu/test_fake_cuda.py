"""What a GPU would stumble on, found without one: fake_cuda.py, which each test runs in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
# Launches of a time step, forward and backward, with narrow operands. LSTMs are counted op by op, as without cuDNN, and
# what is recorded runs as it comes, while it is recorded, and replayed.
A_STEP = {("zforcing", "bptt"): (26, 22), ("srnn", "bptt"): (18, 25), ("zforcing", "triton"): (12, 12)}
KERNELS_OF_A_STEP = 6
NOISE = 149  # of a whole batch, without its kernel


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the guard against the headers of this torch."""
    target, place = tmp_path_factory.mktemp("guard") / "guard.so", Path(torch.__file__).parent
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{place}/include", f"-L{place}/lib", f"-Wl,-rpath,{place}/lib"]
    source = str(HERE / "fake_cuda_guard.cpp")
    subprocess.run(["g++", *flags, "-o", str(target), source, "-ltorch_cpu", "-lc10"], check=True)
    return target


def found(library: Path, part: str) -> list[dict[str, Any]]:
    if torch.version.cuda is not None:
        pytest.skip("this torch has the real guard")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "unit"), *sys.path])
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(HERE / "fake_cuda.py"), str(library), part]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    cases: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return cases


def test_the_audit_finds_every_kind_of_fault(library: Path) -> None:
    (case,) = found(library, "faults")
    kinds = {fault.split(":")[0] for fault in case["found"]}
    assert kinds >= {"waits for a number", "waits for a size", "makes a tensor on the CPU", "copies and waits"}
    assert sum(n for fault, n in case["found"].items() if fault.startswith("copies")) == 2
    assert any(fault.startswith(("FakeTensorDeviceMismatchError", "mixes devices")) for fault in case["found"])


@pytest.mark.parametrize("part", ["evaluate", "generate"])
def test_no_device_is_mixed_and_nothing_waits(library: Path, part: str) -> None:
    """All systems and densities; that generating waits before it begins is of no account."""
    cases = found(library, part)
    assert len(cases) == 26 and [case for case in cases if case["found"]] == []


def test_a_training_step_mixes_no_device_waits_for_nothing_and_launches_no_more_than_its_budget(library: Path) -> None:
    """All systems and densities, switches, implementations and precisions; gradients are of their weights' types."""
    cases = found(library, "train")
    assert [case for case in cases if case["found"]] == []
    assert all(case["launches"]["noise"] <= NOISE for case in cases)
    for (system, implementation), budgets in A_STEP.items():
        short, long = cases_of(cases, system, implementation)
        for name, budget in zip(("forward", "backward"), budgets, strict=True):
            launches = (long["launches"][name] - short["launches"][name]) / 4
            assert launches <= budget, f"{system} by {implementation}, {name}: {launches} launches a step"
        if implementation == "triton":
            assert long["kernels"] - short["kernels"] == 3 * 4 * KERNELS_OF_A_STEP


def cases_of(cases: list[dict[str, Any]], system: str, implementation: str) -> list[dict[str, Any]]:
    name = {"system": system, "implementation": implementation, "precision": "bf16", "switches": {}}
    alike = [case for case in cases if name.items() <= case["case"].items() and case["case"]["steps"] in (4, 8)]
    return sorted(alike, key=lambda case: int(case["case"]["steps"]))
