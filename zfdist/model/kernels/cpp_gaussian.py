"""log N(value; mean, std) of the numbers that a net gives, with its derivatives, in one pass over memory on a CPU.

Autograd would make some twenty passes over [T, B, D]. The derivatives are computed in the forward pass, where all that
they need is in registers; the backward pass multiplies them by the gradient of each row.

Shapes: ... leading dimensions (time, batch), D the dimensions of the density.
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels import cpp_library
from zfdist.model.kernels.arguments import ready
from zfdist.model.kernels.cpp_library import call, threads_for


class _Settings(ctypes.Structure):
    """`Gaussian` of gaussians.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "values", "threads", "squash")),
        *((name, ctypes.c_double) for name in ("floor", "bound")),
    )


def is_supported(numbers: Tensor, value: Tensor) -> bool:
    """Return whether it can take these: a CPU, one type of float32 or float64, and no gradient to `value`."""
    if torch.compiler.is_compiling():  # which cannot look into C++
        return False
    alike = numbers.dtype == value.dtype and numbers.device == value.device
    fits = value.ndim > 0 and numbers.shape == (*value.shape[:-1], 2 * value.shape[-1])
    served = not cpp_library.unsupported_reason(numbers.device, numbers.dtype, numbers.dtype)
    return alike and fits and served and not value.requires_grad


def observation_log_prob(numbers: Tensor, value: Tensor, floor: float) -> Tensor:
    """Return log N(value; m, floor + exp(r)) for `numbers` = m, r: [..., 2 D], [..., D] -> [...]."""
    return _log_prob(numbers, value, floor, math.inf, False)


def latent_log_prob(numbers: Tensor, value: Tensor, bound: float, squash: bool) -> Tensor:
    """Return log N(value; m, exp(r / 2)), m and r clamped to [-bound, bound] (0: not); `squash` makes m its tanh."""
    return _log_prob(numbers, value, 0.0, bound or math.inf, squash)


def _log_prob(numbers: Tensor, value: Tensor, floor: float, bound: float, squash: bool) -> Tensor:
    entry, shape = "density in one pass", value.shape
    twice = (*shape[:-1], *(2 * size for size in shape[-1:]))
    numbers = ready(entry, "numbers", numbers, twice, numbers.dtype, numbers.device)
    value = ready(entry, "value", value, shape, numbers.dtype, numbers.device)
    result: Tensor = _LogProb.apply(numbers, value, floor, bound, squash)  # type: ignore[no-untyped-call]
    return result


class _LogProb(torch.autograd.Function):
    """Differentiable once, and in the numbers only."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, value: Tensor, floor: float, bound: float, squash: bool) -> Tensor:
        log_prob, slope = value.new_empty(value.shape[:-1]), torch.empty_like(numbers)
        threads = threads_for(50 * value.numel())  # the functions of one value cost about as much
        settings = _Settings(log_prob.numel(), value.shape[-1], threads, squash, floor, bound)
        call("gaussian", settings, (numbers, value, log_prob, slope))
        ctx.save_for_backward(slope)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grad[..., None], None, None, None, None
