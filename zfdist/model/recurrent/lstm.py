"""LSTMs over all steps, forwards or from each row's own end: nn.LSTM, and on a CPU sweeps in C++ with its parameters.

There the input projection is one product over all steps, the rest is lstm.cpp, and the backward sweep is followed by
one product for each weight. Steps are read in the order that is asked for, where nn.LSTM needs its input and its result
reordered. On a GPU cuDNN serves; torch does under torch.compile and for a single step, whose weights would be packed
to be used once: for a loop where each input comes from the state before, `stepping` keeps them. In float32 under
autocast too: a 16-bit cell state costs accuracy and, in nn.LSTM, time; but in fp16 on a GPU
zfdist.model.kernels.cudnn_persistent serves where it can.

Shapes: T time, S = T + 1, N = T * B, B batch, D inputs, H hidden, G = 4 H gates in torch's order i, f, u, o.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zfdist.model.kernels import cpp_library, cpp_lstm_step, cudnn_persistent
from zfdist.model.kernels.arguments import gradients, prepared
from zfdist.model.kernels.cpp_library import call, threads_for
from zfdist.model.kernels.lstm_cell import GATES, State, no_autocast, operand_dtype, zero_state
from zfdist.model.kernels.mixed_precision import widen
from zfdist.profile import span, spanned


class LSTM(nn.LSTM):
    """An LSTM of one layer that reads forwards; the parameters of nn.LSTM, and its numbers to rounding."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def forward(self, value_TBD: Tensor, state: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """Read from h = c = 0 or `state`: [T, B, D] -> [T, B, H] and the last state."""
        value_TBD = widen(value_TBD)
        start = zero_state(value_TBD.shape[1], self.hidden_size, value_TBD) if state is None else state
        start, operand = State(widen(start.h_BH), widen(start.c_BH)), operand_dtype(value_TBD)
        with no_autocast(value_TBD):
            if _serves(value_TBD):
                h_TBH, c_BH = _sweep(self, value_TBD, start, None)
                return h_TBH, State(h_TBH[-1], c_BH)
            return _by_torch(self, value_TBD, start, operand)

    def step(self, value_BD: Tensor, state: State | None) -> State:
        """Read one step, from h = c = 0 or `state`: a loop where each input comes from the state before."""
        last: State = self(value_BD[None], state)[1]
        return last

    def stepping(self, steps: int) -> Callable[[Tensor, State | None], State]:
        """Return `step` for a loop of so many: in C++ where that serves, and pays.

        Reads the weights outside `forward`: for a whole module, not for one that ZeRO 3 has partitioned.
        """
        w_in_GD, w_GH, b_in_G, b_G = self.all_weights[0]
        if not cpp_lstm_step.is_worthwhile(steps) or cpp_library.unsupported_reason(
            w_GH.device, w_GH.dtype, w_GH.dtype
        ):
            return self.step
        following, bias_G = cpp_lstm_step.Stepper(w_GH, None, cpp_lstm_step.TORCH), b_in_G + b_G

        def step(value_BD: Tensor, state: State | None) -> State:
            with no_autocast(value_BD):
                gx_BG = F.linear(widen(value_BD), w_in_GD, bias_G)
            start = zero_state(len(gx_BG), self.hidden_size, gx_BG) if state is None else state
            return following(gx_BG, None, start)

        return step


class BackwardLSTM(nn.LSTM):
    """As `LSTM`, but reads each row from its own end to its beginning."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def forward(self, value_TBD: Tensor, lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Read from h = c = 0: step t of the result [T, B, H] has read steps length - 1 .. t of [T, B, D].

        `lengths_B` is int64, 0 .. T; steps beyond a row's length mean nothing.
        """
        value_TBD = widen(value_TBD)
        start, operand = zero_state(len(lengths_B), self.hidden_size, value_TBD), operand_dtype(value_TBD)
        with no_autocast(value_TBD):
            if _serves(value_TBD):
                return _sweep(self, value_TBD, start, lengths_B)[0]
            order_N = _reversal(lengths_B, len(value_TBD))
            return _permuted(_by_torch(self, _permuted(value_TBD, order_N), start, operand)[0], order_N)


def _serves(value_TBD: Tensor) -> bool:
    """Return whether the sweeps in C++ can take this and are worth it."""
    if len(value_TBD) < 2 or torch.compiler.is_compiling():
        return False
    return not cpp_library.unsupported_reason(value_TBD.device, value_TBD.dtype, value_TBD.dtype)


def _by_torch(lstm: nn.LSTM, value_TBD: Tensor, start: State, operand: torch.dtype) -> tuple[Tensor, State]:
    with span("forward core"):
        if cudnn_persistent.is_supported(value_TBD, lstm.hidden_size, operand):
            return cudnn_persistent.run(value_TBD, start, lstm.all_weights[0], operand)
        h_TBH, (h_1BH, c_1BH) = nn.LSTM.forward(lstm, value_TBD, (start.h_BH[None], start.c_BH[None]))
    return h_TBH, State(h_1BH[0], c_1BH[0])


def _sweep(lstm: nn.LSTM, value_TBD: Tensor, start: State, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    w_in_GD, w_GH, b_in_G, b_G = lstm.all_weights[0]
    gx_TBG = F.linear(value_TBD, w_in_GD, b_in_G + b_G)
    with span("forward core"):
        return _sweeps(gx_TBG, start, w_GH, lengths_B)


def _sweeps(gx_TBG: Tensor, start: State, w_GH: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return h of all steps and the last c from projected inputs, read backwards if there are lengths."""
    data = {"gx_TBG": gx_TBG, "h_BH": start.h_BH, "c_BH": start.c_BH}
    whole = {} if lengths_B is None else {"lengths_B": lengths_B}
    ready = prepared("LSTM", data, {"w_GH": w_GH}, whole=whole, multiples={"G": (GATES, "H")})
    (gx_TBG, h_BH, c_BH), w_GH, lengths_B = ready[:3], ready[-1], ready[3] if whole else None
    result: tuple[Tensor, Tensor] = _Sweeps.apply(gx_TBG, h_BH, c_BH, w_GH, lengths_B, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return result


class _Sizes(ctypes.Structure):
    """`Sizes` of lstm.cpp."""

    _fields_ = tuple((n, ctypes.c_int64) for n in ("steps", "batch", "hidden", "threads", "keep", "backwards"))


class _Sweeps(torch.autograd.Function):
    """From projected inputs to h of all steps and the last c, backwards if there are lengths; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, gx_TBG: Tensor, h_BH: Tensor, c_BH: Tensor, w_GH: Tensor, lengths_B: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        steps, batch, gates = gx_TBG.shape
        backwards, empty = lengths_B is not None, gx_TBG.new_empty
        h_SBH = empty(steps + 1, batch, gates // GATES)
        c_SBH = empty(steps + 1 if keep else 1, batch, gates // GATES)
        act_TBG = empty(steps if keep else 1, batch, gates)
        first, last = (-1, 0) if backwards else (0, -1)
        h_SBH[first], c_SBH[first] = h_BH, c_BH
        lengths_B = torch.full((batch,), steps) if lengths_B is None else lengths_B
        sizes = _Sizes(steps, batch, gates // GATES, threads_for(steps * batch * w_GH.numel()), keep, backwards)
        call("lstm_forward", sizes, (gx_TBG, w_GH, lengths_B, act_TBG, h_SBH, c_SBH))
        ctx.save_for_backward(act_TBG, h_SBH, c_SBH, w_GH, lengths_B)
        ctx.sizes = sizes
        return h_SBH[:-1] if backwards else h_SBH[1:], c_SBH[last].clone()

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        act_TBG, h_SBH, c_SBH, w_GH, lengths_B = ctx.saved_tensors
        dh_TBH, dc_BH = gradients("LSTM", {"h_TBH": h_SBH[1:], "c_BH": h_SBH[0]}, given)
        dg_TBG, dh_BH, dc_BH = torch.empty_like(act_TBG), torch.zeros_like(h_SBH[0]), dc_BH.clone()
        inputs = (act_TBG, c_SBH, w_GH, lengths_B, dh_TBH)
        call("lstm_backward", ctx.sizes, (*inputs, dg_TBG, dh_BH, dc_BH))
        before_TBH = h_SBH[1:] if ctx.sizes.backwards else h_SBH[:-1]
        dw_GH = dg_TBG.flatten(0, 1).t() @ before_TBH.flatten(0, 1)
        return dg_TBG, dh_BH, dc_BH, dw_GH, None, None


class _Permute(torch.autograd.Function):
    """Rows (t, b) in another order that is its own inverse: so the gradient is permuted by the same order."""

    @staticmethod
    def forward(ctx: Any, value_TBD: Tensor, order_N: Tensor) -> Tensor:
        ctx.save_for_backward(order_N)
        return value_TBD.flatten(0, 1).index_select(0, order_N).view_as(value_TBD)

    @staticmethod
    def backward(ctx: Any, grad_TBD: Tensor) -> tuple[Tensor, None]:
        return _permuted(grad_TBD, *ctx.saved_tensors), None


def _permuted(value_TBD: Tensor, order_N: Tensor) -> Tensor:
    permuted: Tensor = _Permute.apply(value_TBD, order_N)  # type: ignore[no-untyped-call]
    return permuted


def _reversal(lengths_B: Tensor, steps: int) -> Tensor:
    """Return the flat order [T * B] that reverses each row within its own length and leaves its padding in place."""
    time_TB = torch.arange(steps, device=lengths_B.device)[:, None]
    source_TB = torch.where(time_TB < lengths_B, lengths_B - 1 - time_TB, time_TB)
    return (source_TB * lengths_B.shape[0] + torch.arange(lengths_B.shape[0], device=lengths_B.device)).flatten()
