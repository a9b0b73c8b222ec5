"""The chain of SRNN's latents: the loop over time in which each one is drawn given the one before.

What does not depend on z stays outside: the parts pd and qa of the two hidden layers that read d_t and a_t come in
ready for all steps, side by side as pq. Inside, for t = 1 .. T, with the prior's net beside the posterior's:

    a_t           = clip(lrelu(pq_t + z_{t-1} Wz'))          hidden layers of both nets
    m_t, v_t      = clamp(a_t[prior] Wq[prior]' + bq)        mean and log-variance of p(z_t | z_{t-1}, d_t)
    r_t, s_t      = clamp(a_t[posterior] Wq[posterior]' + bq)
    z_t           = m_t + r_t + exp(s_t / 2) * eps_t         q(z_t | z_{t-1}, a_t) has mean m + r and log-variance s

`reference` is this text under autograd: the definition. `ByHand`, called bptt, is one autograd function with the same
arguments and results, and the same numbers to rounding: each weight's gradient is one product over all steps instead of
T small ones added up, and what the backward recursion does not change is computed for all steps at once, before it.
`native` (kernels.cpp_latent_chain) is that in C++ for a CPU, `graph` that recorded on a GPU. Under autocast only
the operands of the products with z are rounded to 16 bits.

Shapes: as in zfdist.model.kernels.core_arguments, and N = T * B.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zfdist.model.distributions import Gaussian, latent_gaussian
from zfdist.model.kernels.core_arguments import ChainCore, ChainResults, chain_gradients
from zfdist.model.kernels.cuda_graphs import graphs_of
from zfdist.model.kernels.lstm_cell import (
    CLIP,
    SLOPE,
    clamp_latent,
    clipped_leaky_relu,
    clipped_leaky_relu_slope,
    inside,
    no_autocast,
    operand_dtype,
)
from zfdist.model.kernels.mixed_precision import linear, product, rounded, widen
from zfdist.model.kernels.recording import Loop
from zfdist.model.recurrent.recurrence import UNDECIDED, Implementation, choose, describe, found
from zfdist.profile import span, spanned

LOOPS: Mapping[str, str] = {
    "reference": f"{__name__}:reference",
    "bptt": f"{__name__}:by_hand",
    "native": "zfdist.model.kernels.cpp_latent_chain:unroll",
    "graph": f"{__name__}:recorded",
}
"""The implementations by name, and where each is: functions that are called like `reference` and give the same."""


class Chain(NamedTuple):
    """Latents and the densities that they were drawn from and are judged by, for all steps."""

    z_TBZ: Tensor
    posterior: Gaussian
    prior: Gaussian


def reference(core: ChainCore) -> ChainResults:
    """Run the loop by autograd."""
    core = core.prepared()
    z_BZ, z_TBZ, q_T2BQ = core.z_BZ, [], []
    for pq_BP, eps_BZ in zip(core.pq_TBP, core.eps_TBZ, strict=True):
        a_BP = clipped_leaky_relu(pq_BP + linear(z_BZ, core.w_z_PZ, core.operand))
        q_2BQ = clamp_latent(torch.baddbmm(core.b_q_2Q[:, None], _nets(a_BP), core.w_q_2QM.mT), core.bound)
        (m_BZ, _), (r_BZ, s_BZ) = (q_BQ.chunk(2, dim=-1) for q_BQ in q_2BQ)
        z_BZ = m_BZ + r_BZ + torch.exp(0.5 * s_BZ) * eps_BZ
        z_TBZ.append(z_BZ)
        q_T2BQ.append(q_2BQ)
    return torch.stack(z_TBZ), torch.stack(q_T2BQ)


class _SavedActivations(NamedTuple):
    """All steps of the forward pass, as the backward pass needs them; written in place, never stacked."""

    a_TBP: Tensor
    q_T2BQ: Tensor
    noise_TBZ: Tensor  # exp(s/2) * eps
    z_TBZ: Tensor


def by_hand(core: ChainCore) -> ChainResults:
    """Run the loop as `reference` does, with a backward pass that is written out."""
    results: ChainResults = ByHand.apply(*core.prepared())  # type: ignore[no-untyped-call]
    return results


def recorded(core: ChainCore) -> tuple[Tensor, ...]:
    """Run the loop as `by_hand` does, recorded as a CUDA graph."""
    return graphs_of(Loop(ByHand, timed=2))(core)


class ByHand(torch.autograd.Function):
    """The loop as one node of the graph; differentiable once, and not in the noise."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> ChainResults:
        """Run the loop on the fields of a `ChainCore`."""
        core = ChainCore(*given)
        core = core._replace(w_z_PZ=rounded(core.w_z_PZ, core.operand))
        (steps, batch, z_dim), empty = core.eps_TBZ.shape, core.pq_TBP.new_empty
        acts = _SavedActivations(
            a_TBP=empty(core.pq_TBP.shape),
            q_T2BQ=empty(steps, 2, batch, 2 * z_dim),
            noise_TBZ=empty(core.eps_TBZ.shape),
            z_TBZ=empty(core.eps_TBZ.shape),
        )
        _forward_sweep(acts, core)
        ctx.save_for_backward(*acts, core.z_BZ, core.w_z_PZ, core.w_q_2QM)
        ctx.bound, ctx.operand = core.bound, core.operand
        return acts.z_TBZ, acts.q_T2BQ

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `forward`'s tensors; the noise gets none."""
        *saved, z_BZ, w_z_PZ, w_q_2QM = ctx.saved_tensors
        acts, operand, wide = _SavedActivations(*saved), ctx.operand, w_q_2QM.dtype
        dz_TBZ, dq_T2BQ = chain_gradients(acts.z_TBZ, acts.q_T2BQ, given)
        with no_autocast(dz_TBZ):
            d_TBP = clipped_leaky_relu_slope(acts.a_TBP)
            dq_T2BQ, jacobian_T2BQ = _latent_derivatives(acts, dq_T2BQ, ctx.bound)
            dz_BZ = _backward_sweep(d_TBP, dq_T2BQ, jacobian_T2BQ, dz_TBZ, w_z_PZ, w_q_2QM, operand)
            d_NP, before_NZ = d_TBP.flatten(0, 1), torch.cat([z_BZ, *acts.z_TBZ[:-1]])
            dw_z_PZ = product(rounded(d_NP, operand).t(), rounded(before_NZ, operand), wide)
            dw_q_2QM = dq_T2BQ.transpose(0, 1).flatten(1, 2).mT @ _nets(acts.a_TBP.flatten(0, 1))
            db_q_2Q = dq_T2BQ.sum((0, 2))
        return d_TBP, None, dz_BZ, dw_z_PZ, dw_q_2QM, db_q_2Q, None, None


class LatentChain(nn.Module):
    """The weights that read z_{t-1}, and the loop; one module, so that ZeRO 3 gathers it once per call."""

    def __init__(self, z_dim: int, mlp_dim: int, latent_clamp: float, implementation: Implementation = "auto") -> None:
        super().__init__()
        self.latent_clamp = latent_clamp
        self.implementation = implementation
        self.fastest = "auto"
        """What was measured to be so, if it was: `zfdist.loop_choice` sets it."""
        nets = [(nn.Linear(z_dim, mlp_dim, bias=False), nn.Linear(mlp_dim, 2 * z_dim)) for _ in range(2)]
        self.w_z_PZ = nn.Parameter(torch.cat([hidden.weight.detach() for hidden, _ in nets]))
        self.w_q_2QM = nn.Parameter(torch.stack([out.weight.detach() for _, out in nets]))
        self.b_q_2Q = nn.Parameter(torch.zeros(2, 2 * z_dim))

    def forward(self, pd_TBM: Tensor, qa_TBM: Tensor, eps_TBZ: Tensor, z_BZ: Tensor) -> Chain:
        """Run all steps from z_0; `pd_TBM` and `qa_TBM` are the hidden layers' parts from d_t and a_t.

        Differentiable in these, z_0 and the weights; in `eps_TBZ`, and twice, by `reference` only.
        """
        pq_TBP, narrow = torch.cat([widen(pd_TBM), widen(qa_TBM)], dim=-1), operand_dtype(self.w_z_PZ)
        with no_autocast(pq_TBP), span("forward core"):
            weights = (self.w_z_PZ, self.w_q_2QM, self.b_q_2Q)
            core = ChainCore(pq_TBP, eps_TBZ, z_BZ, *weights, self.latent_clamp, narrow)
            z_TBZ, q_T2BQ = found(LOOPS[self._serving(eps_TBZ, narrow)])(core)
        (m_TBZ, v_TBZ), (r_TBZ, s_TBZ) = (q_TBQ.chunk(2, dim=-1) for q_TBQ in q_T2BQ.unbind(1))
        return Chain(z_TBZ, latent_gaussian(m_TBZ + r_TBZ, s_TBZ), latent_gaussian(m_TBZ, v_TBZ))

    def step(self, pd_BM: Tensor, z_BZ: Tensor) -> Gaussian:
        """Return p(z_t | z_{t-1}, d_t): the generative path.

        Reads the weights outside `forward`: for a whole module, not for one that ZeRO 3 has partitioned.
        """
        pd_BM, narrow = widen(pd_BM), operand_dtype(widen(pd_BM))
        with no_autocast(pd_BM):
            a_BM = clipped_leaky_relu(pd_BM + linear(z_BZ, self.w_z_PZ[: pd_BM.shape[1]], narrow))
            q_BQ = clamp_latent(F.linear(a_BM, self.w_q_2QM[0], self.b_q_2Q[0]), self.latent_clamp)
        return latent_gaussian(*q_BQ.chunk(2, dim=-1))

    def describe(self, operand: torch.dtype) -> str:
        """Return what training on this machine takes, and why that is not `native` where it might have been."""
        like = self.b_q_2Q
        return describe(self.implementation, choose(self._wanted, like.device, like.dtype, operand), like, operand)

    @property
    def _wanted(self) -> str:
        """What is asked for; there are no fused kernels for this loop, but it can be recorded."""
        wanted = self.fastest if self.implementation in UNDECIDED else self.implementation
        return "graph" if wanted == "triton" else wanted

    def _serving(self, eps_TBZ: Tensor, operand: torch.dtype) -> str:
        undecided = self.implementation in UNDECIDED
        if torch.compiler.is_compiling():  # which cannot look into C++
            return "reference"
        if undecided and eps_TBZ.requires_grad:
            return "reference"  # the only one that is differentiable in the noise
        chosen = choose(self._wanted, self.w_z_PZ.device, self.w_z_PZ.dtype, operand)
        # Without a gradient the plain loop keeps nothing and saves the memory of what it would save.
        spares = undecided and chosen == "bptt" and not torch.is_grad_enabled()
        return "reference" if spares else chosen


def _nets(both_BP: Tensor) -> Tensor:
    """Return [.., 2 M] as [2, .., M]: what the batched products of both nets read."""
    return both_BP.view(*both_BP.shape[:-1], 2, both_BP.shape[-1] // 2).movedim(-2, 0)


def _forward_sweep(acts: _SavedActivations, core: ChainCore) -> None:
    """Fill the saved activations, with every product and sum written where it stays."""
    z_dim, wide, p_BP = core.eps_TBZ.shape[2], core.pq_TBP.dtype, core.pq_TBP.new_empty(core.pq_TBP.shape[1:])
    z_BZ, bound = core.z_BZ, core.bound
    prior_TBQ, posterior_TBQ = acts.q_T2BQ.unbind(1)
    rows = zip(
        core.pq_TBP.unbind(), core.eps_TBZ.unbind(), acts.a_TBP.unbind(), _nets(acts.a_TBP).unbind(1),
        acts.q_T2BQ.unbind(), prior_TBQ[..., :z_dim].unbind(), posterior_TBQ[..., :z_dim].unbind(),
        posterior_TBQ[..., z_dim:].unbind(), acts.noise_TBZ.unbind(), acts.z_TBZ.unbind(), strict=True,
    )  # fmt: skip
    for pq, eps, a, a_2, q, m, r, s, noise, z in rows:
        p_BP = product(rounded(z_BZ, core.operand), core.w_z_PZ.t(), wide, p_BP)
        torch.add(p_BP, pq, out=a)
        F.leaky_relu_(a, SLOPE).clamp_(-CLIP, CLIP)
        torch.baddbmm(core.b_q_2Q[:, None], a_2, core.w_q_2QM.mT, out=q)
        if bound > 0:
            q.clamp_(-bound, bound)
        torch.mul(s, 0.5, out=noise)
        noise.exp_().mul_(eps)
        z_BZ = torch.add(m, r, out=z).add_(noise)


def _latent_derivatives(acts: _SavedActivations, dq_T2BQ: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return dq before the part that comes through z, and dz/dq for that part; both 0 where clamped."""
    half_TBZ = 0.5 * acts.noise_TBZ
    ones_TBZ, zeros_TBZ = torch.ones_like(half_TBZ), torch.zeros_like(half_TBZ)
    parts = [torch.cat([ones_TBZ, of_logvar_TBZ], dim=-1) for of_logvar_TBZ in (zeros_TBZ, half_TBZ)]
    dq_T2BQ = inside(dq_T2BQ, acts.q_T2BQ, bound).clone(memory_format=torch.contiguous_format)
    return dq_T2BQ, inside(torch.stack(parts, dim=1), acts.q_T2BQ, bound)


def _backward_sweep(
    d_TBP: Tensor, dq_T2BQ: Tensor, jacobian_T2BQ: Tensor, dz_TBZ: Tensor, w_z_PZ: Tensor, w_q_2QM: Tensor,
    operand: torch.dtype,
) -> Tensor:  # fmt: skip
    """Run the recursion from the last step to the first, turning d_TBP and dq_T2BQ into gradients in place."""
    parts = (2, dz_TBZ.shape[1], 2, dz_TBZ.shape[2])
    dz_BZ = torch.zeros_like(dz_TBZ[0])
    rows = zip(
        d_TBP.unbind(), _nets(d_TBP).unbind(1), dq_T2BQ.unbind(), jacobian_T2BQ.unbind(), dz_TBZ.unbind(), strict=True
    )
    for d, d_2, dq, jacobian, direct in reversed(list(rows)):
        dz_BZ = dz_BZ + direct
        dq.view(parts).addcmul_(dz_BZ[None, :, None], jacobian.view(parts))
        d_2.mul_(torch.bmm(dq, w_q_2QM))
        dz_BZ = product(rounded(d, operand), w_z_PZ, d.dtype)
    return dz_BZ
