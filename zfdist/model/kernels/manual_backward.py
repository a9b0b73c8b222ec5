"""Back-propagation through the recurrence, written by hand.

Two savings over autograd: each weight's gradient is one product over all steps instead of T small ones added up, and
all that does not depend on the backward recursion is computed for all steps at once, before it. The formulas and
letters are those of zfdist.model.recurrent.recurrence; in float64 both agree to rounding.

Shapes: as in zfdist.model.kernels.core_arguments, and S = T + 1, N = T * B, P = G + M: what is computed from h_{t-1}.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.core_arguments import Core, Results, core_gradients
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


class _Weights(NamedTuple):
    """What products read, rounded."""

    w_p_PH: Tensor
    w_z_GZ: Tensor
    w_q_QM: Tensor


def unroll(core: Core) -> Results:
    """Run the loop, as `reference` of zfdist.model.recurrent.recurrence."""
    results: Results = BPTT.apply(*core.prepared())  # type: ignore[no-untyped-call]
    return results


class BPTT(torch.autograd.Function):
    """The loop of zfdist.model.recurrent.recurrence as one node of the graph; differentiable once."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Results:
        """Run the loop on the fields of a `Core`.

        Operands of matrix products are rounded to `operand`; all else is in the type of the inputs.
        """
        core = Core(*given)
        weights = _Weights(
            w_p_PH=rounded(torch.cat([core.w_h_GH, core.w_a_MH]), core.operand),
            w_z_GZ=rounded(core.w_z_GZ, core.operand),
            w_q_QM=rounded(core.w_q_QM, core.operand),
        )
        acts = _allocate(core)
        _forward_sweep(acts, core, weights)
        ctx.save_for_backward(*acts, *weights)
        ctx.bound, ctx.operand = core.bound, core.operand
        return acts.h_SBH[1:], acts.z_TBZ, acts.q_TBQ, acts.c_SBH[-1]

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `forward`'s tensors; the noise gets none."""
        saved, operand = ctx.saved_tensors, ctx.operand
        acts, weights = (
            _SavedActivations(*saved[: len(_SavedActivations._fields)]),
            _Weights(*saved[len(_SavedActivations._fields) :]),
        )
        dh_TBH, dz_TBZ, dq_TBQ, dc_BH = core_gradients(acts.h_SBH, acts.z_TBZ, acts.q_TBQ, given)
        gates, wide = acts.act_TBG.shape[2], acts.h_SBH.dtype
        with no_autocast(dh_TBH):
            d_TBP, through_TBH = _local_derivatives(acts)
            dq_TBQ, jacobian_TBQ = _latent_derivatives(acts, dz_TBZ, dq_TBQ, ctx.bound)
            dh_BH, dc_BH = _backward_sweep(
                acts, d_TBP, through_TBH, dq_TBQ, jacobian_TBQ, dh_TBH, dc_BH, weights, operand
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


def _allocate(core: Core) -> _SavedActivations:
    (steps, batch, z_dim), hidden, empty = core.eps_TBZ.shape, core.h_BH.shape[1], core.h_BH.new_empty
    acts = _SavedActivations(
        act_TBG=torch.empty_like(core.gx_TBG),
        tanh_c_TBH=empty(steps, batch, hidden),
        h_SBH=empty(steps + 1, batch, hidden),
        c_SBH=empty(steps + 1, batch, hidden),
        a_TBM=torch.empty_like(core.qb_TBM),
        q_TBQ=empty(steps, batch, 2 * z_dim),
        noise_TBZ=empty(steps, batch, z_dim),
        z_TBZ=empty(steps, batch, z_dim),
    )
    acts.h_SBH[0], acts.c_SBH[0] = core.h_BH, core.c_BH
    return acts


def _forward_sweep(acts: _SavedActivations, core: Core, weights: _Weights) -> None:
    """Fill the saved activations, with every product and sum written where it stays."""
    z_dim, wide, empty = core.eps_TBZ.shape[2], core.gx_TBG.dtype, core.gx_TBG.new_empty
    batch, gates = core.gx_TBG.shape[1:]
    hidden, bound, operand = gates // GATES, core.bound, core.operand
    p_BP, g_BG, r_BQ = empty(batch, weights.w_p_PH.shape[0]), empty(batch, gates), empty(batch, 2 * z_dim)
    h_S, c_S = acts.h_SBH.unbind(), acts.c_SBH.unbind()
    rows = zip(
        core.gx_TBG.unbind(), core.qb_TBM.unbind(), core.eps_TBZ.unbind(), acts.act_TBG.unbind(),
        acts.tanh_c_TBH.unbind(), acts.a_TBM.unbind(), acts.q_TBQ.unbind(), acts.noise_TBZ.unbind(),
        acts.z_TBZ.unbind(), strict=True,
    )  # fmt: skip
    for t, (gx, qb, eps, act, tanh_c, a, q, noise, z) in enumerate(rows):
        p_BP = product(rounded(h_S[t], operand), weights.w_p_PH.t(), wide, p_BP)
        torch.add(p_BP[:, gates:], qb, out=a)
        F.leaky_relu_(a, SLOPE).clamp_(-CLIP, CLIP)
        r_BQ = product(rounded(a, operand), weights.w_q_QM.t(), wide, r_BQ)
        torch.add(r_BQ, core.b_q_Q, out=q)
        if bound > 0:
            q.clamp_(-bound, bound)
        torch.mul(q[:, z_dim:], 0.5, out=noise)
        noise.exp_().mul_(eps)
        torch.add(q[:, :z_dim], noise, out=z)
        g_BG = product(rounded(z, operand), weights.w_z_GZ.t(), wide, g_BG)
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
    dh_TBH: Tensor, dc_BH: Tensor, weights: _Weights, operand: torch.dtype,
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
        dz_BZ = product(rounded(d[:, :gates], operand), weights.w_z_GZ, wide)
        dq.view(-1, 2, z_dim).addcmul_(dz_BZ[:, None], jacobian_T[t].view(-1, 2, z_dim))
        d[:, gates:].mul_(product(rounded(dq, operand), weights.w_q_QM, wide))
        dh_BH = product(rounded(d, operand), weights.w_p_PH, wide)
    return dh_BH, dc_BH
