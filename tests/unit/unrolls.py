"""Arguments for an implementation of the recurrence, and how to compare what two of them make of these."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zfdist.model.kernels.core_arguments import Core


def arguments(
    steps: int, batch: int, hidden: int, z_dim: int, mlp_dim: int, *, bound: float = 8.0, scale: float = 0.5,
    dtype: torch.dtype = torch.float64, operand: torch.dtype | None = None, seed: int = 0, device: str = "cpu",
) -> Core:  # fmt: skip
    """Draw all that an implementation takes; `scale` 2 makes the clips of a and a small clamp of q bite."""
    random = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        drawn = scale * torch.randn(shape, dtype=torch.float64, generator=random)
        return drawn.to(device, dtype).requires_grad_()

    inputs = [leaf(steps, batch, 4 * hidden), leaf(steps, batch, mlp_dim)]
    inputs += [leaf(steps, batch, z_dim).detach(), leaf(batch, hidden), leaf(batch, hidden)]
    weights = [leaf(4 * hidden, hidden), leaf(4 * hidden, z_dim), leaf(mlp_dim, hidden), leaf(2 * z_dim, mlp_dim)]
    return Core(*inputs, *weights, leaf(2 * z_dim), bound, operand or dtype)


def mixed(outputs: Sequence[Tensor]) -> Tensor:
    """Return one number that every element of the outputs has a part in of its own."""
    parts = []
    for i, output in enumerate(outputs):
        mix = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        parts.append((mix.to(output) * output.sin()).sum())
    return torch.stack(parts).sum()


def results(unroll: Callable[[Any], Sequence[Tensor]], given: Sequence[Any]) -> list[Tensor]:
    """Return outputs, and the gradients of all that has one."""
    outputs = unroll(given)
    leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
    return [*outputs, *torch.autograd.grad(mixed(outputs), leaves)]


def assert_close(expected: Sequence[Tensor], actual: Sequence[Tensor], tolerance: float) -> None:
    """Fail where the relative error of any tensor, in its norm, is above the tolerance."""
    for one, other in zip(expected, actual, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).norm() <= tolerance * one.norm().clamp(min=1.0)


def assert_any_output_may_go_unused(
    run: Callable[[str], Sequence[Tensor]], leaves: Sequence[Tensor], used: int
) -> None:
    """Fail where a gradient of one output of `run("bptt")` or `run("native")` is not that of `run("reference")`."""
    gradients = [
        torch.autograd.grad(run(name)[used].square().sum(), leaves, allow_unused=True)
        for name in ("reference", "bptt", "native")
    ]
    for expected, *others in zip(*gradients, strict=True):
        for actual in others:
            zeros = torch.zeros_like(actual) if expected is None else expected
            torch.testing.assert_close(actual, zeros, rtol=1e-12, atol=1e-12)
