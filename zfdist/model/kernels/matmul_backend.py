"""How float32 matrix products are made: on a CPU by oneDNN where that is exact, on a GPU as the precision says.

On some processors oneDNN takes half the time of torch's default. The switch that torch has for it permits operands of
16 bits inside. Where the processor multiplies those in hardware (AMX) oneDNN uses the permission, elsewhere the
products stay true float32; so the error is measured before it is switched on, and a processor that would round is
refused.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 2e-6
"""Largest relative error against float64: some 3e-7 in true float32, 3e-4 in TF32, 3e-3 with operands of 16 bits."""
FROM_MULTIPLICATIONS = 2**26
"""Of a step of a loop (weights times sequences): oneDNN's calls cost more, which fewer do not make up for."""


def float32(
    device: torch.device, precision: str = "fp32", *, onednn: bool = True
) -> contextlib.AbstractContextManager[str]:
    """Return a context in which float32 products are made the fastest way that is exact enough; it gives that in words.

    `precision` (fp32, tf32, bf16, fp16) says what a GPU may do, `onednn` whether a CPU may take oneDNN, which is exact.
    """
    return _on_a_gpu(precision) if device.type == "cuda" else _on_a_cpu(onednn)


@contextmanager
def _on_a_cpu(onednn: bool) -> Iterator[str]:
    if not onednn:
        yield "by torch's default"
        return
    error = onednn_error()
    if not error <= TOLERANCE:
        yield f"by torch's default, since oneDNN would round here (error {error:.0e})"
        return
    with through_onednn():
        yield f"by oneDNN (error {error:.0e})"


@contextmanager
def _on_a_gpu(precision: str) -> Iterator[str]:
    """Let a GPU round the operands of all float32 products to TF32, or under fp32 of none: torch would in LSTMs.

    Under bf16 and fp16 these are the heads', whose inputs have no more bits than TF32 keeps. Torch's older switch is
    turned as well, and convolutions like LSTMs: it raises where others ask it and find the switches at odds.
    """
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.rnn, backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    rounds = precision != "fp32"
    try:
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = rounds
        for setting in settings:
            setting.fp32_precision = "tf32" if rounds else "ieee"
        yield "in TF32" if rounds else "exact"
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = (value == "tf32" for value in before[:2])
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def rounding() -> tuple[str, ...]:
    """Return how float32 products are made just now, on a GPU and on a CPU: what a recording of them is made for."""
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.rnn, backends.mkldnn.matmul)
    return tuple(setting.fp32_precision for setting in settings)


@contextmanager
def through_onednn() -> Iterator[None]:
    """Send float32 products to oneDNN, on all threads of this process, and put the setting back afterwards."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@functools.cache
def onednn_error() -> float:
    """Return the relative error of float32 products through oneDNN: the worst of three layouts, against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((64, 1024), (1024, 512)))
    layouts = [(a, b), (a, b.t().contiguous().t()), (a.t().contiguous().t(), b)]
    with through_onednn():
        return max(_error(left @ right, left.double() @ right.double()) for left, right in layouts)


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())
