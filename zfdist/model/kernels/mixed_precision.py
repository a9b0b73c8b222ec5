"""Matrix products whose operands alone are narrow (bf16, fp16): they add up in the wide type and give it.

Autocast would round the results too, and those of the loop are summands before a gate.

Shapes: N rows, D inputs, H outputs; ... leading dimensions (time, batch).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.lstm_cell import no_autocast, operand_dtype

OPERANDS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the operands of products are rounded to, by precision; in TF32 the GPU does that inside."""


def widen(value: Tensor) -> Tensor:
    """Return 16-bit floats as float32, anything wider as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def rounded(value: Tensor, operand: torch.dtype) -> Tensor:
    """Round an operand of products; a CPU keeps it in its own type, as it cannot multiply 16 bits and add up 32."""
    if value.dtype == operand:
        return value
    narrow = value.to(operand)
    return narrow if value.is_cuda else narrow.to(value.dtype)


def product(left: Tensor, right: Tensor, wide: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return left @ right in the type `wide`, which it adds up in too: only its operands may be narrow.

    `out`, of that type, may be used for the result.
    """
    if left.dtype == wide:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return torch.mm(left.to(wide), right.to(wide), out=out)


def linear(value: Tensor, weight: Tensor, operand: torch.dtype) -> Tensor:
    """Multiply with operands rounded to `operand`, also backwards; what is added up stays wide."""
    if value.dtype == weight.dtype == operand:
        return F.linear(value, weight)
    result: Tensor = _Rounded.apply(value, weight, operand)  # type: ignore[no-untyped-call]
    return result


class _Rounded(torch.autograd.Function):
    """[.., D] and [H, D] -> [.., H] by products of rounded operands; differentiable once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight_HD: Tensor, operand: torch.dtype) -> Tensor:
        value_ND, weight_HD, wide = rounded(value.flatten(0, -2), operand), rounded(weight_HD, operand), weight_HD.dtype
        ctx.save_for_backward(value_ND, weight_HD)
        ctx.given, ctx.operand = value.dtype, operand
        return product(value_ND, weight_HD.t(), wide).view(*value.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        value_ND, weight_HD = ctx.saved_tensors
        grad_NH = rounded(grad.flatten(0, -2), ctx.operand)
        dvalue = product(grad_NH, weight_HD, grad.dtype).view(*grad.shape[:-1], -1)
        return dvalue.to(ctx.given), product(grad_NH.t(), value_ND, grad.dtype), None


class WideLinear(nn.Linear):
    """A linear layer whose result stays wide under autocast, which rounds operands alone: sums before a gate."""

    def forward(self, value: Tensor) -> Tensor:
        """Return [.., H] for [.., D]."""
        operand = operand_dtype(self.weight)
        if operand == self.weight.dtype:
            return super().forward(value)
        with no_autocast(self.weight):
            result = linear(widen(value), self.weight, operand)
            return result if self.bias is None else result + self.bias
