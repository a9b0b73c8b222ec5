"""The chain of SRNN's latents by the C++ of latent_chain.cpp: both sweeps over time, for a CPU in float32 and float64.

Formulas and letters are those of zfdist.model.recurrent.latent_chain. A sweep is one call; the weight gradients are one
product each over all steps, by torch.

Shapes: as in zfdist.model.kernels.core_arguments, and S = T + 1, N = T * B.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.core_arguments import ChainCore, ChainResults, chain_gradients
from zfdist.model.kernels.cpp_library import call, threads_for
from zfdist.model.kernels.lstm_cell import CLIP, SLOPE
from zfdist.profile import spanned


class _Sizes(ctypes.Structure):
    """`Sizes` of latent_chain.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "z", "mlp", "threads", "keep")),
        *((name, ctypes.c_double) for name in ("bound", "clip", "slope")),
    )


def unroll(core: ChainCore) -> ChainResults:
    """Run the loop, as `reference` of zfdist.model.recurrent.latent_chain; `core.operand` is the type of the weights.

    Without a gradient the activations that only the backward sweep reads are one step long.
    """
    result: ChainResults = _Native.apply(*core.prepared(), torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return result


class _Native(torch.autograd.Function):
    """The loop as one node of the graph; differentiable once, and not in the noise."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> ChainResults:
        core, keep = ChainCore(*given[:-1]), given[-1]
        (steps, batch, z_dim), both, empty = core.eps_TBZ.shape, core.pq_TBP.shape[2], core.pq_TBP.new_empty
        a_TBP, q_T2BQ = empty(steps if keep else 1, batch, both), empty(steps, 2, batch, 2 * z_dim)
        z_SBZ = empty(steps + 1, batch, z_dim)
        z_SBZ[0] = core.z_BZ
        threads = threads_for(steps * batch * (core.w_z_PZ.numel() + core.w_q_2QM.numel()))
        ctx.sizes = _Sizes(steps, batch, z_dim, both // 2, threads, keep, core.bound, CLIP, SLOPE)
        inputs = (core.pq_TBP, core.eps_TBZ, core.w_z_PZ, core.w_q_2QM, core.b_q_2Q)
        call("chain_forward", ctx.sizes, (*inputs, a_TBP, q_T2BQ, z_SBZ))
        ctx.save_for_backward(core.eps_TBZ, a_TBP, q_T2BQ, core.w_z_PZ, core.w_q_2QM, z_SBZ)
        return z_SBZ[1:], q_T2BQ

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        *saved, z_SBZ = ctx.saved_tensors
        a_TBP, q_T2BQ = saved[1:3]
        outside, (steps, nets, batch, latent) = chain_gradients(z_SBZ[1:], q_T2BQ, given), q_T2BQ.shape
        d_TBP, dz_BZ = torch.empty_like(a_TBP), torch.zeros_like(z_SBZ[0])
        through_2TBQ = q_T2BQ.new_empty(nets, steps, batch, latent)  # by net, as the products below read it
        call("chain_backward", ctx.sizes, (*saved, *outside, d_TBP, through_2TBQ, dz_BZ))
        a_2NM = a_TBP.view(steps * batch, nets, a_TBP.shape[2] // nets).transpose(0, 1)
        dq_2QN = through_2TBQ.flatten(1, 2).mT
        dw_z_PZ = d_TBP.flatten(0, 1).t() @ z_SBZ[:-1].flatten(0, 1)
        return d_TBP, None, dz_BZ, dw_z_PZ, dq_2QN @ a_2NM, dq_2QN.sum(2), None, None, None
