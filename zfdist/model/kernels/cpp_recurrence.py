"""The recurrence by the C++ of recurrence.cpp: both sweeps over time, for a CPU in float32 and float64.

Formulas and letters are those of zfdist.model.recurrent.recurrence and of `manual_backward` beside this. A sweep is one
call that lets go of Python's lock; the weight gradients are one product each over all steps, by torch.

Shapes: T time, S = T + 1, N = T * B, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of the posterior,
G = 4 H gates in the order o, i, f, u.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.cpp_library import BuildError, library, threads_for
from zfdist.model.kernels.lstm_cell import CLIP, SLOPE
from zfdist.profile import spanned

_NAMES = {torch.float32: "f32", torch.float64: "f64"}


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


def unsupported_reason(device: torch.device, wide: torch.dtype, operand: torch.dtype) -> str:
    """Return why this implementation cannot serve, or nothing; builds it at the first call."""
    if device.type != "cpu" or wide not in _NAMES or operand != wide:
        return f"is for float32 and float64 on a CPU, not for {str(operand).removeprefix('torch.')} on {device.type}"
    try:
        library()
    except BuildError as error:
        return str(error)
    return ""


def unroll(
    gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, h_BH: Tensor, c_BH: Tensor, w_h_GH: Tensor,
    w_z_GZ: Tensor, w_a_MH: Tensor, w_q_QM: Tensor, b_q_Q: Tensor, bound: float, operand: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the loop, as `reference` of zfdist.model.recurrent.recurrence; `operand` is the type of all tensors.

    Without a gradient the activations that only the backward sweep reads are one step long.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _Native.apply(
        gx_TBG, qb_TBM, eps_TBZ, h_BH, c_BH, w_h_GH, w_z_GZ, w_a_MH, w_q_QM, b_q_Q, bound, torch.is_grad_enabled()
    )  # type: ignore[no-untyped-call]
    return result


class _Native(torch.autograd.Function):
    """The loop as one node of the graph; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, h_BH: Tensor, c_BH: Tensor, w_h_GH: Tensor,
        w_z_GZ: Tensor, w_a_MH: Tensor, w_q_QM: Tensor, b_q_Q: Tensor, bound: float, keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        steps, batch, gates = gx_TBG.shape
        hidden, mlp_dim, z_dim = gates // 4, qb_TBM.shape[2], eps_TBZ.shape[2]
        kept = steps if keep else 1
        weights = _Weights(*(w.contiguous() for w in (w_h_GH, w_z_GZ, w_a_MH, w_q_QM)))
        empty, eps_TBZ = h_BH.new_empty, eps_TBZ.contiguous()
        h_SBH, c_SBH = empty(steps + 1, batch, hidden), empty(kept + 1, batch, hidden)
        h_SBH[0], c_SBH[0] = h_BH, c_BH
        act_TBG, a_TBM = empty(kept, batch, gates), empty(kept, batch, mlp_dim)
        q_TBQ, z_TBZ = empty(steps, batch, 2 * z_dim), empty(steps, batch, z_dim)
        threads = threads_for(steps * batch * sum(w.numel() for w in weights))
        ctx.sizes = _Sizes(steps, batch, hidden, z_dim, mlp_dim, threads, keep, bound, CLIP, SLOPE)
        inputs = (gx_TBG.contiguous(), qb_TBM.contiguous(), eps_TBZ, *weights, b_q_Q.contiguous())
        call("forward", ctx.sizes, (*inputs, act_TBG, h_SBH, c_SBH, a_TBM, q_TBQ, z_TBZ))
        ctx.save_for_backward(h_SBH, z_TBZ, *_SavedActivations(eps_TBZ, act_TBG, c_SBH, a_TBM, q_TBQ), *weights)
        return h_SBH[1:], z_TBZ, q_TBQ, c_SBH[-1 if keep else 0].clone()

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, dh_TBH: Tensor, dz_TBZ: Tensor, dq_TBQ: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        h_SBH, z_TBZ, *saved = ctx.saved_tensors
        acts, weights = (
            _SavedActivations(*saved[: len(_SavedActivations._fields)]),
            _Weights(*saved[len(_SavedActivations._fields) :]),
        )
        dg_TBG, da_TBM, through_TBQ = (torch.empty_like(s) for s in (acts.act_TBG, acts.a_TBM, acts.q_TBQ))
        dh_BH, dc_BH = torch.zeros_like(h_SBH[0]), dc_BH.clone(memory_format=torch.contiguous_format)
        outside = (dh_TBH.contiguous(), dz_TBZ.contiguous(), dq_TBQ.contiguous())
        call("backward", ctx.sizes, (*acts, *weights, *outside, dg_TBG, da_TBM, through_TBQ, dh_BH, dc_BH))
        h_NH = h_SBH[:-1].flatten(0, 1)
        dg_GN, da_MN, dq_QN = (d.flatten(0, 1).t() for d in (dg_TBG, da_TBM, through_TBQ))
        dweights = (dg_GN @ h_NH, dg_GN @ z_TBZ.flatten(0, 1), da_MN @ h_NH, dq_QN @ acts.a_TBM.flatten(0, 1))
        return dg_TBG, da_TBM, None, dh_BH, dc_BH, *dweights, dq_QN.sum(1), None, None


def call(name: str, sizes: ctypes.Structure, arrays: tuple[Tensor, ...]) -> None:
    """Call the function `name` of the library, of the first array's type, with dense arrays in the order it knows."""
    pointers = (ctypes.c_void_p * len(arrays))(*(array.data_ptr() for array in arrays))
    getattr(library(), f"{name}_{_NAMES[arrays[0].dtype]}")(ctypes.byref(sizes), pointers)
