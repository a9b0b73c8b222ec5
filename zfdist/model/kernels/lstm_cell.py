"""One step of the recurrence, and the activations of the nets around it: what every implementation shares.

Shapes: B batch, H hidden, G = 4 H gates in the order o, i, f, u.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 1.0 / 3.0
CLIP = 3.0
GATES = 4


class State(NamedTuple):
    """What one time step hands to the next."""

    h_BH: Tensor
    c_BH: Tensor


def zero_state(batch: int, hidden: int, like: Tensor) -> State:
    """Return h_0 = c_0 = 0 for `batch` sequences, of the type and on the device of `like`."""
    zeros_BH = torch.zeros(batch, hidden, dtype=like.dtype, device=like.device)
    return State(zeros_BH, zeros_BH)


def clipped_leaky_relu(value: Tensor) -> Tensor:
    """Leaky ReLU of slope 1/3, clipped to [-3, 3]: the activation of all nets beside the LSTMs."""
    return F.hardtanh(F.leaky_relu(value, SLOPE), -CLIP, CLIP, inplace=True)


def clipped_leaky_relu_slope(result: Tensor) -> Tensor:
    """Return the derivative of `clipped_leaky_relu` where it gave `result`, in two passes over memory."""
    ones = result.new_ones(()).expand_as(result)
    slope = torch.ops.aten.leaky_relu_backward(ones, result, SLOPE, self_is_result=True)
    return inside(slope, result, CLIP)


def inside(grad: Tensor, result: Tensor, bound: float) -> Tensor:
    """Return the gradient, and 0 where `result` was clamped to [-bound, bound]; a bound of 0 stands for none."""
    if bound == 0:
        return grad
    within: Tensor = torch.ops.aten.hardtanh_backward(grad, result, -bound, bound)
    return within


def clamp_latent(value: Tensor, bound: float) -> Tensor:
    """Clamp to [-bound, bound]; a bound of 0 stands for none."""
    return F.hardtanh(value, -bound, bound) if bound > 0 else value  # its derivative is one pass, that of clamp four


def cell(g_BG: Tensor, c_BH: Tensor) -> State:
    """LSTM cell on the summed pre-activations of its gates, equation (4)."""
    o_BH, i_BH, f_BH, u_BH = g_BG.chunk(GATES, dim=-1)
    c_BH = torch.sigmoid(f_BH) * c_BH + torch.sigmoid(i_BH) * torch.tanh(u_BH)
    return State(torch.sigmoid(o_BH) * torch.tanh(c_BH), c_BH)


def operand_dtype(like: Tensor) -> torch.dtype:
    """Return the type that operands of matrix products are rounded to: autocast's, where it is on."""
    kind = like.device.type
    narrow = torch.is_autocast_enabled(kind) and like.dtype == torch.float32
    return torch.get_autocast_dtype(kind) if narrow else like.dtype


def no_autocast(like: Tensor) -> torch.autocast:
    """Return a context in which the dtypes written down are the dtypes computed in."""
    return torch.autocast(like.device.type, enabled=False)
