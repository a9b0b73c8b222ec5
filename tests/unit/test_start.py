"""What a start must not wait for."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module", ["jobs.train", "jobs.sweep", "cluster.run.fit", "cluster.sweep.driver", "cluster.run.process_group"]
)
def test_commands_and_rays_controller_import_no_torch(module: str) -> None:
    """Torch takes seconds, which commands, and Ray Train's controller after them, would add to every start."""
    code = f"import sys, {module}; print([name for name in ('torch', 'deepspeed') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_begins_without_torchs_compiler_and_pandas(store: Path, tmp_path: Path) -> None:
    """DeepSpeed compiles an optimizer that is not ours, torch's own imports the compiler to be spared by it: 2 s."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness
from zfdist import train, world
config = harness.tiny_config(Path(sys.argv[2]), train__steps=1)
train.train(config, Path(sys.argv[3]), world.connect(), harness.Recorder())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy", "pandas") if name in sys.modules])
"""
    words = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(store), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
