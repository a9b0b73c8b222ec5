"""Back-propagation through the recurrence, written by hand.

Two savings over autograd: each weight's gradient is one product over all steps instead of T small ones added up, and
all that does not depend on the backward recursion is computed for all steps at once, before it. The formulas and
letters are those of zfdist.model.recurrent.recurrence; in float64 both agree to rounding.

Shapes: T time, S = T + 1, N = T * B, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of the posterior,
G = 4 H gates in the order o, i, f, u, P = G + M all that is computed from h_{t-1}.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.lstm_cell import CLIP, GATES, SLOPE, clipped_leaky_relu_slope, inside, no_autocast
from zfdist.model.kernels.mixed_precision import product, rounded
from zfdist.profile import spanned


class _SavedActivations(NamedTuple):
    """All steps of the forward pass, as the backward pass needs them; written in place, never stacked."""

    act_TBG: Tensor  # gates after their activations
    tanh_c_TBH: Tensor
    h_SBH: Tensor
    c_SBH: Tensor
    a_TBM: Tensor
    q_TBQ: Tensor
    noise_TBZ: Tensor  # exp(v/2) * eps
    z_TBZ: Tensor


class BPTT(torch.autograd.Function):
    """The loop of zfdist.model.recurrent.recurrence as one node of the graph; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, h_BH: Tensor, c_BH: Tensor, w_h_GH: Tensor,
        w_z_GZ: Tensor, w_a_MH: Tensor, w_q_QM: Tensor, b_q_Q: Tensor, bound: float, operand: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return h [T, B, H], z [T, B, Z], mu and v as [T, B, 2 Z], and the last c; `bound` 0 stands for no clamp.

        Operands of matrix products are rounded to `operand`; all else is in the type of the inputs.
        """
        w_p_PH = rounded(torch.cat([w_h_GH, w_a_MH]), operand)
        w_z_GZ, w_q_QM = rounded(w_z_GZ, operand), rounded(w_q_QM, operand)
        acts = _allocate(gx_TBG, qb_TBM, eps_TBZ, h_BH, c_BH)
        _forward_sweep(acts, gx_TBG, qb_TBM, eps_TBZ, w_p_PH, w_z_GZ, w_q_QM, b_q_Q, bound, operand)
        ctx.save_for_backward(*acts, w_p_PH, w_z_GZ, w_q_QM)
        ctx.bound, ctx.operand = bound, operand
        return acts.h_SBH[1:], acts.z_TBZ, acts.q_TBQ, acts.c_SBH[-1]

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, dh_TBH: Tensor, dz_TBZ: Tensor, dq_TBQ: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `forward`'s tensors; the noise gets none."""
        *saved, w_p_PH, w_z_GZ, w_q_QM = ctx.saved_tensors
        acts, operand = _SavedActivations(*saved), ctx.operand
        gates, wide = acts.act_TBG.shape[2], acts.h_SBH.dtype
        with no_autocast(dh_TBH):
            d_TBP, through_TBH = _local_derivatives(acts)
            dq_TBQ, jacobian_TBQ = _latent_derivatives(acts, dz_TBZ, dq_TBQ, ctx.bound)
            dh_BH, dc_BH = _backward_sweep(
                acts, d_TBP, through_TBH, dq_TBQ, jacobian_TBQ, dh_TBH, dc_BH, w_p_PH, w_z_GZ, w_q_QM, operand
            )
            read = (d_TBP, dq_TBQ, acts.h_SBH[:-1], acts.z_TBZ, acts.a_TBM)
            d_NP, dq_NQ, h_NH, z_NZ, a_NM = (rounded(value.flatten(0, 1), operand) for value in read)
            dw_p_PH = product(d_NP.t(), h_NH, wide)
            dw_z_GZ = product(d_NP[:, :gates].t(), z_NZ, wide)
            dw_q_QM = product(dq_NQ.t(), a_NM, wide)
            db_q_Q = dq_TBQ.sum((0, 1))
        dgx_TBG, dqb_TBM = d_TBP[..., :gates], d_TBP[..., gates:]
        dweights = (dw_p_PH[:gates], dw_z_GZ, dw_p_PH[gates:], dw_q_QM, db_q_Q)
        return dgx_TBG, dqb_TBM, None, dh_BH, dc_BH, *dweights, None, None


def _allocate(gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, h_BH: Tensor, c_BH: Tensor) -> _SavedActivations:
    steps, batch, z_dim = eps_TBZ.shape
    hidden = h_BH.shape[1]
    acts = _SavedActivations(
        act_TBG=torch.empty_like(gx_TBG, memory_format=torch.contiguous_format),
        tanh_c_TBH=h_BH.new_empty(steps, batch, hidden),
        h_SBH=h_BH.new_empty(steps + 1, batch, hidden),
        c_SBH=h_BH.new_empty(steps + 1, batch, hidden),
        a_TBM=torch.empty_like(qb_TBM, memory_format=torch.contiguous_format),
        q_TBQ=h_BH.new_empty(steps, batch, 2 * z_dim),
        noise_TBZ=h_BH.new_empty(steps, batch, z_dim),
        z_TBZ=h_BH.new_empty(steps, batch, z_dim),
    )
    acts.h_SBH[0], acts.c_SBH[0] = h_BH, c_BH
    return acts


def _forward_sweep(
    acts: _SavedActivations, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor,
    w_p_PH: Tensor, w_z_GZ: Tensor, w_q_QM: Tensor, b_q_Q: Tensor, bound: float, operand: torch.dtype,
) -> None:  # fmt: skip
    """Fill the saved activations, with every product and sum written where it stays."""
    z_dim, wide = eps_TBZ.shape[2], gx_TBG.dtype
    batch, gates = gx_TBG.shape[1:]
    hidden = gates // GATES
    p_BP = gx_TBG.new_empty(batch, w_p_PH.shape[0])
    g_BG, r_BQ = gx_TBG.new_empty(batch, gates), gx_TBG.new_empty(batch, 2 * z_dim)
    h_S, c_S = acts.h_SBH.unbind(), acts.c_SBH.unbind()
    rows = zip(
        gx_TBG.unbind(), qb_TBM.unbind(), eps_TBZ.unbind(), acts.act_TBG.unbind(), acts.tanh_c_TBH.unbind(),
        acts.a_TBM.unbind(), acts.q_TBQ.unbind(), acts.noise_TBZ.unbind(), acts.z_TBZ.unbind(), strict=True,
    )  # fmt: skip
    for t, (gx, qb, eps, act, tanh_c, a, q, noise, z) in enumerate(rows):
        p_BP = product(rounded(h_S[t], operand), w_p_PH.t(), wide, p_BP)
        torch.add(p_BP[:, gates:], qb, out=a)
        F.leaky_relu_(a, SLOPE).clamp_(-CLIP, CLIP)
        r_BQ = product(rounded(a, operand), w_q_QM.t(), wide, r_BQ)
        torch.add(r_BQ, b_q_Q, out=q)
        if bound > 0:
            q.clamp_(-bound, bound)
        torch.mul(q[:, z_dim:], 0.5, out=noise)
        noise.exp_().mul_(eps)
        torch.add(q[:, :z_dim], noise, out=z)
        g_BG = product(rounded(z, operand), w_z_GZ.t(), wide, g_BG)
        torch.add(p_BP[:, :gates], gx, out=act)
        act.add_(g_BG)
        act[:, : 3 * hidden].sigmoid_()
        act[:, 3 * hidden :].tanh_()
        o, i, f, u = act.chunk(GATES, dim=1)
        torch.mul(f, c_S[t], out=c_S[t + 1]).addcmul_(i, u)
        torch.tanh(c_S[t + 1], out=tanh_c)
        torch.mul(o, tanh_c, out=h_S[t + 1])


def _local_derivatives(acts: _SavedActivations) -> tuple[Tensor, Tensor]:
    """Return d_TBP, each pre-activation's factor before the recursion multiplies dh or dc into it, and dc/dh."""
    steps, batch, gates = acts.act_TBG.shape
    d_TBP = acts.act_TBG.new_empty(steps, batch, gates + acts.a_TBM.shape[2])
    o, i, f, u = acts.act_TBG.chunk(GATES, dim=-1)
    d_o, d_i, d_f, d_u = d_TBP[..., :gates].chunk(GATES, dim=-1)
    torch.mul(torch.addcmul(o, o, o, value=-1), acts.tanh_c_TBH, out=d_o)
    torch.mul(torch.addcmul(i, i, i, value=-1), u, out=d_i)
    torch.mul(torch.addcmul(f, f, f, value=-1), acts.c_SBH[:-1], out=d_f)
    torch.mul(i, 1 - u.square(), out=d_u)
    # Decided on the stored wide value, before any rounding could move it onto the edge.
    d_TBP[..., gates:] = clipped_leaky_relu_slope(acts.a_TBM)
    return d_TBP, o * (1 - acts.tanh_c_TBH.square())


def _latent_derivatives(acts: _SavedActivations, dz_TBZ: Tensor, dq_TBQ: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return dq before the part that comes through the gates, and dz/dq for that part; both 0 where clamped."""
    jacobian_TBQ = torch.cat([torch.ones_like(acts.z_TBZ), 0.5 * acts.noise_TBZ], dim=-1)
    jacobian_TBQ, dq_TBQ = (inside(d_TBQ, acts.q_TBQ, bound) for d_TBQ in (jacobian_TBQ, dq_TBQ))
    return torch.addcmul(dq_TBQ, jacobian_TBQ, dz_TBZ.repeat(1, 1, 2)), jacobian_TBQ


def _backward_sweep(
    acts: _SavedActivations, d_TBP: Tensor, through_TBH: Tensor, dq_TBQ: Tensor, jacobian_TBQ: Tensor,
    dh_TBH: Tensor, dc_BH: Tensor, w_p_PH: Tensor, w_z_GZ: Tensor, w_q_QM: Tensor, operand: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recursion from the last step to the first, turning d_TBP and dq_TBQ into gradients in place."""
    gates, wide = acts.act_TBG.shape[2], d_TBP.dtype
    hidden, z_dim = gates // GATES, acts.z_TBZ.shape[2]
    dh_BH, dc_BH = torch.zeros_like(dc_BH), dc_BH.clone()
    through, forget = through_TBH.unbind(), acts.act_TBG[..., 2 * hidden : 3 * hidden].unbind()
    d_T, dq_T, jacobian_T, direct_T = d_TBP.unbind(), dq_TBQ.unbind(), jacobian_TBQ.unbind(), dh_TBH.unbind()
    for t in range(len(d_T) - 1, -1, -1):
        d, dq = d_T[t], dq_T[t]
        dh_BH = dh_BH + direct_T[t]
        dc_BH.addcmul_(dh_BH, through[t])
        d[:, :hidden].mul_(dh_BH)
        d[:, hidden:gates].view(-1, 3, hidden).mul_(dc_BH[:, None])
        dc_BH.mul_(forget[t])
        dz_BZ = product(rounded(d[:, :gates], operand), w_z_GZ, wide)
        dq.view(-1, 2, z_dim).addcmul_(dz_BZ[:, None], jacobian_T[t].view(-1, 2, z_dim))
        d[:, gates:].mul_(product(rounded(dq, operand), w_q_QM, wide))
        dh_BH = product(rounded(d, operand), w_p_PH, wide)
    return dh_BH, dc_BH
