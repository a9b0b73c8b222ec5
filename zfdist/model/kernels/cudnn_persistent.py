"""An LSTM in fp16 by cuDNN's persistent kernels, which keep its weights inside the GPU's processors for all steps.

They are several times faster than cuDNN's others, and torch takes them for one layer in fp16 whose input and hidden
sizes are multiples of 128, the latter at most 1024, with a batch of a multiple of 8 up to 128 (aten's cudnn/RNN.cpp).
Zeros fill up what falls short, and change nothing: a unit without weights has f = i = o = 1/2 and u = 0, so that its
c and h stay 0. cuDNN computes in float32; h and c are given in fp16.

Shapes: T time, B batch, D inputs, H hidden, G = 4 H gates.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zfdist.model.kernels.arguments import prepared
from zfdist.model.kernels.lstm_cell import GATES, State

_UNITS, _ROWS = 128, 8
_MOST_UNITS, _MOST_ROWS = 1024, 128


def is_supported(value_TBD: Tensor, hidden: int, operand: torch.dtype) -> bool:
    """Return whether these kernels can run an LSTM of so many units, whose operands are of the type `operand`."""
    fits = hidden <= _MOST_UNITS and value_TBD.shape[1] <= _MOST_ROWS
    return value_TBD.is_cuda and operand == torch.float16 and fits


def run(value_TBD: Tensor, state: State, weights: Sequence[Tensor], operand: torch.dtype) -> tuple[Tensor, State]:
    """Run all steps from `state` in the type `operand`; [T, B, H] and the last state are of the type of the weights.

    `weights` are those of an nn.LSTM of one layer, in its order.
    """
    w_in_GD, w_GH, b_in_G, b_G = weights
    value_TBD, h_BH, c_BH, *weights = prepared(
        "persistent LSTM",
        {"value_TBD": value_TBD, "h_BH": state.h_BH, "c_BH": state.c_BH},
        {"w_in_GD": w_in_GD, "w_GH": w_GH, "b_in_G": b_in_G, "b_G": b_G},
        multiples={"G": (GATES, "H")},
    )
    (_, batch, inputs), hidden, wide = value_TBD.shape, h_BH.shape[1], value_TBD.dtype
    rows, inputs_more, units = _missing(batch, _ROWS), _missing(inputs, _UNITS), _missing(hidden, _UNITS)
    w_in_GD, w_GH, b_in_G, b_G = (w.to(operand).view(GATES, hidden, *w.shape[1:]) for w in weights)
    filled = [
        F.pad(w_in_GD, (0, inputs_more, 0, units)), F.pad(w_GH, (0, units, 0, units)),
        F.pad(b_in_G, (0, units)), F.pad(b_G, (0, units)),
    ]  # fmt: skip
    h_1BH, c_1BH = (F.pad(s, (0, units, 0, rows)).to(operand)[None] for s in (h_BH, c_BH))
    value_TBD = F.pad(value_TBD.to(operand), (0, inputs_more, 0, rows))
    params, train = [w.flatten(0, 1) for w in filled], torch.is_grad_enabled()
    h_TBH, h_1BH, c_1BH = torch.lstm(value_TBD, (h_1BH, c_1BH), params, True, 1, 0.0, train, False, False)
    return _cut(h_TBH, batch, hidden).to(wide), State(*(_cut(s, batch, hidden)[0].to(wide) for s in (h_1BH, c_1BH)))


def _missing(size: int, multiple: int) -> int:
    return -size % multiple


def _cut(value_TBH: Tensor, batch: int, hidden: int) -> Tensor:
    return value_TBH[:, :batch, :hidden]
