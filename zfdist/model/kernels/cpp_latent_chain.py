"""The chain of SRNN's latents by the C++ of latent_chain.cpp: both sweeps over time, for a CPU in float32 and float64.

Formulas and letters are those of zfdist.model.recurrent.latent_chain. A sweep is one call; the weight gradients are one
product each over all steps, by torch.

Shapes: T time, S = T + 1, N = T * B, B batch, Z latent, Q = 2 Z, M hidden units of a net, P = 2 M those of both, and
a dimension of 2: the prior's net, the posterior's.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels import cpp_recurrence
from zfdist.model.kernels.cpp_library import threads_for
from zfdist.model.kernels.lstm_cell import CLIP, SLOPE
from zfdist.profile import spanned


class _Sizes(ctypes.Structure):
    """`Sizes` of latent_chain.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "z", "mlp", "threads", "keep")),
        *((name, ctypes.c_double) for name in ("bound", "clip", "slope")),
    )


def unroll(
    pq_TBP: Tensor, eps_TBZ: Tensor, z_BZ: Tensor, w_z_PZ: Tensor, w_q_2QM: Tensor, b_q_2Q: Tensor,
    bound: float, operand: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the loop, as `reference` of zfdist.model.recurrent.latent_chain, with all in the type `operand`.

    Without a gradient the activations that only the backward sweep reads are one step long.
    """
    given = (value.to(operand) for value in (pq_TBP, eps_TBZ, z_BZ, w_z_PZ, w_q_2QM, b_q_2Q))
    result: tuple[Tensor, Tensor] = _Native.apply(*given, bound, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return result


class _Native(torch.autograd.Function):
    """The loop as one node of the graph; differentiable once, and not in the noise."""

    @staticmethod
    def forward(
        ctx: Any, pq_TBP: Tensor, eps_TBZ: Tensor, z_BZ: Tensor, w_z_PZ: Tensor, w_q_2QM: Tensor, b_q_2Q: Tensor,
        bound: float, keep: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (steps, batch, z_dim), both, empty = eps_TBZ.shape, pq_TBP.shape[2], pq_TBP.new_empty
        eps_TBZ, w_z_PZ, w_q_2QM = eps_TBZ.contiguous(), w_z_PZ.contiguous(), w_q_2QM.contiguous()
        a_TBP, q_T2BQ = empty(steps if keep else 1, batch, both), empty(steps, 2, batch, 2 * z_dim)
        z_SBZ = empty(steps + 1, batch, z_dim)
        z_SBZ[0] = z_BZ
        threads = threads_for(steps * batch * (w_z_PZ.numel() + w_q_2QM.numel()))
        ctx.sizes = _Sizes(steps, batch, z_dim, both // 2, threads, keep, bound, CLIP, SLOPE)
        inputs = (pq_TBP.contiguous(), eps_TBZ, w_z_PZ, w_q_2QM, b_q_2Q.contiguous())
        cpp_recurrence.call("chain_forward", ctx.sizes, (*inputs, a_TBP, q_T2BQ, z_SBZ))
        ctx.save_for_backward(eps_TBZ, a_TBP, q_T2BQ, w_z_PZ, w_q_2QM, z_SBZ)
        return z_SBZ[1:], q_T2BQ

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, dz_TBZ: Tensor, dq_T2BQ: Tensor) -> tuple[Tensor | None, ...]:
        *saved, z_SBZ = ctx.saved_tensors
        a_TBP, (steps, nets, batch, latent) = saved[1], dq_T2BQ.shape
        d_TBP, dz_BZ = torch.empty_like(a_TBP), torch.zeros_like(z_SBZ[0])
        through_2TBQ = dq_T2BQ.new_empty(nets, steps, batch, latent)  # by net, as the products below read it
        outside = (dz_TBZ.contiguous(), dq_T2BQ.contiguous())
        cpp_recurrence.call("chain_backward", ctx.sizes, (*saved, *outside, d_TBP, through_2TBQ, dz_BZ))
        dq_2QN, a_2NM = through_2TBQ.flatten(1, 2).mT, a_TBP.view(steps * batch, nets, -1).transpose(0, 1)
        dw_z_PZ = d_TBP.flatten(0, 1).t() @ z_SBZ[:-1].flatten(0, 1)
        return d_TBP, None, dz_BZ, dw_z_PZ, dq_2QN @ a_2NM, dq_2QN.sum(2), None, None
