"""The recurrence by the C++ of recurrence.cpp: both sweeps over time, for a CPU in float32 and float64.

Formulas and letters are those of zfdist.model.recurrent.recurrence and of `manual_backward` beside this. A sweep is one
call that lets go of Python's lock; the weight gradients are one product each over all steps, by torch.

Shapes: as in zfdist.model.kernels.core_arguments, and S = T + 1, N = T * B.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.core_arguments import Core, Results, core_gradients
from zfdist.model.kernels.cpp_library import call, threads_for
from zfdist.model.kernels.lstm_cell import CLIP, GATES, SLOPE
from zfdist.profile import spanned


class _Sizes(ctypes.Structure):
    """`Sizes` of recurrence.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "hidden", "z", "mlp", "threads", "keep")),
        *((name, ctypes.c_double) for name in ("bound", "clip", "slope")),
    )


class _Weights(NamedTuple):
    """Weights inside the loop."""

    w_h_GH: Tensor
    w_z_GZ: Tensor
    w_a_MH: Tensor
    w_q_QM: Tensor


class _SavedActivations(NamedTuple):
    """All steps of the forward sweep that the backward sweep reads, in the order of recurrence.cpp."""

    eps_TBZ: Tensor
    act_TBG: Tensor
    c_SBH: Tensor
    a_TBM: Tensor
    q_TBQ: Tensor


def unroll(core: Core) -> Results:
    """Run the loop, as `reference` of zfdist.model.recurrent.recurrence; `core.operand` is the type of the weights.

    Without a gradient the activations that only the backward sweep reads are one step long.
    """
    result: Results = _Native.apply(*core.prepared(), torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return result


class _Native(torch.autograd.Function):
    """The loop as one node of the graph; differentiable once."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Results:
        core, keep = Core(*given[:-1]), given[-1]
        (steps, batch, gates), mlp_dim, z_dim = core.gx_TBG.shape, core.qb_TBM.shape[2], core.eps_TBZ.shape[2]
        hidden, kept, empty = gates // GATES, steps if keep else 1, core.h_BH.new_empty
        weights = _Weights(core.w_h_GH, core.w_z_GZ, core.w_a_MH, core.w_q_QM)
        h_SBH, c_SBH = empty(steps + 1, batch, hidden), empty(kept + 1, batch, hidden)
        h_SBH[0], c_SBH[0] = core.h_BH, core.c_BH
        act_TBG, a_TBM = empty(kept, batch, gates), empty(kept, batch, mlp_dim)
        q_TBQ, z_TBZ = empty(steps, batch, 2 * z_dim), empty(steps, batch, z_dim)
        threads = threads_for(steps * batch * sum(w.numel() for w in weights))
        ctx.sizes = _Sizes(steps, batch, hidden, z_dim, mlp_dim, threads, keep, core.bound, CLIP, SLOPE)
        inputs = (core.gx_TBG, core.qb_TBM, core.eps_TBZ, *weights, core.b_q_Q)
        call("forward", ctx.sizes, (*inputs, act_TBG, h_SBH, c_SBH, a_TBM, q_TBQ, z_TBZ))
        ctx.save_for_backward(h_SBH, z_TBZ, *_SavedActivations(core.eps_TBZ, act_TBG, c_SBH, a_TBM, q_TBQ), *weights)
        return h_SBH[1:], z_TBZ, q_TBQ, c_SBH[-1 if keep else 0].clone()

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        h_SBH, z_TBZ, *saved = ctx.saved_tensors
        acts, weights = (
            _SavedActivations(*saved[: len(_SavedActivations._fields)]),
            _Weights(*saved[len(_SavedActivations._fields) :]),
        )
        dg_TBG, da_TBM, through_TBQ = (torch.empty_like(s) for s in (acts.act_TBG, acts.a_TBM, acts.q_TBQ))
        *outside, dc_BH = core_gradients(h_SBH, z_TBZ, acts.q_TBQ, given)
        dh_BH, dc_BH = torch.zeros_like(h_SBH[0]), dc_BH.clone()
        call("backward", ctx.sizes, (*acts, *weights, *outside, dg_TBG, da_TBM, through_TBQ, dh_BH, dc_BH))
        h_NH = h_SBH[:-1].flatten(0, 1)
        dg_GN, da_MN, dq_QN = (d.flatten(0, 1).t() for d in (dg_TBG, da_TBM, through_TBQ))
        dweights = (dg_GN @ h_NH, dg_GN @ z_TBZ.flatten(0, 1), da_MN @ h_NH, dq_QN @ acts.a_TBM.flatten(0, 1))
        return dg_TBG, da_TBM, None, dh_BH, dc_BH, *dweights, dq_QN.sum(1), None, None, None
