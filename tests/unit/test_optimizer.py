"""The optimizer is torch's own on every device: nothing is compiled for it, and a GPU needs no CUDA toolkit."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.config import OptimConfig
from zfdist.optimizer import adam_settings

AS_ON_A_GPU = """
from deepspeed.ops.adam import fused_adam
from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder
import torch
from zfdist.config import EngineConfig, OptimConfig
from zfdist.engine import Engine
from zfdist.world import connect

# Tensors stay on the CPU; the kernel that DeepSpeed's own Adam would have built is that of a GPU.
fused_adam.FusedAdamBuilder = FusedAdamBuilder
world = connect()._replace(device=torch.device("cuda", 0))
for stage in range(4):
    engine = Engine(torch.nn.Linear(2, 2), EngineConfig(zero_stage=stage, precision="fp32"), OptimConfig(), world)
    optimizer = engine._engine.basic_optimizer
    print(stage, type(optimizer).__name__, optimizer.defaults["fused"], "optimizer" in engine._engine.config)
"""


def test_on_a_gpu_without_toolkit_every_stage_has_torchs_adam(tmp_path: Path) -> None:
    """With an optimizer of its own DeepSpeed would build a kernel here, and miss CUDA_HOME."""
    here = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    here |= {"DS_ACCELERATOR": "cpu", "TORCH_CUDA_ARCH_LIST": "9.0", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AS_ON_A_GPU], capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == [f"{stage} Adam True False" for stage in range(4)]


def trained(values: torch.Tensor, gradients: torch.Tensor, **settings: object) -> torch.Tensor:
    weight = values.clone().requires_grad_()
    adam = torch.optim.Adam([weight], **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        adam.step()
    return weight.detach()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 20), st.floats(1e-6, 1.0), st.floats(0, 0.999),
    st.floats(0, 0.9999), st.floats(1e-8, 1.0),
)  # fmt: skip
def test_fused_is_the_plain_loop(seed, size, steps, learning_rate, beta1, beta2, eps):
    random = torch.Generator().manual_seed(seed)
    values, gradients = torch.randn(size, generator=random), torch.randn(steps, size, generator=random)
    ours = adam_settings(OptimConfig(learning_rate=learning_rate, beta1=beta1, beta2=beta2, adam_eps=eps))
    plain = {"lr": learning_rate, "betas": (beta1, beta2), "eps": eps, "foreach": False}
    off = (trained(values, gradients, **ours) - trained(values, gradients, **plain)).abs()
    assert (off <= 1e-6 * (values.abs() + steps * learning_rate)).all()
