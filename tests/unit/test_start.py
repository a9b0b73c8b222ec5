"""What a start must not wait for."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["jobs.train", "jobs.sweep", "cluster.run.fit", "cluster.sweep.driver", "cluster.run.process_group"]
)
def test_commands_and_rays_controller_import_no_torch(module: str) -> None:
    """Torch takes seconds, which commands, and Ray Train's controller after them, would add to every start."""
    code = f"import sys, {module}; print([name for name in ('torch', 'deepspeed') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_deepspeed_is_set_up_without_torchs_compiler() -> None:
    """DeepSpeed compiles functions of an optimizer that is not ours, for which torch imports all of its compiler."""
    code = """
import sys
import torch
from zfdist.config import EngineConfig, OptimConfig
from zfdist.engine import Engine
from zfdist.world import connect
Engine(torch.nn.Linear(2, 2), EngineConfig(zero_stage=1), OptimConfig(), connect())
print([name for name in ("torch._inductor.compile_fx",) if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
