"""The sequential core: the one loop over time that a stochastic recurrent network cannot avoid.

What does not depend on the state stays outside: the input projection `gx` (with the LSTM's bias) and the part `qb`
of the posterior's hidden layer that reads b_t come in ready for all steps; prior, auxiliary net and outputs are
computed afterwards on the stacked results. Inside, for t = 1 .. T, equations (7) and (4) of the paper:

    a_t           = clip(lrelu(h_{t-1} Wa' + qb_t))          hidden layer of the posterior f_q
    mu_t, v_t     = clamp(a_t Wq' + bq)                      mean and log-variance of q(z_t | h_{t-1}, b_t)
    z_t           = mu_t + exp(v_t / 2) * eps_t
    o, i, f, u    = gx_t + h_{t-1} Wh' + z_t Wz'             sigmoid for o, i, f; tanh for u
    c_t           = f * c_{t-1} + i * u,   h_t = o * tanh(c_t)

`reference` is this text under autograd: the definition. `bptt` (zfdist.model.bptt) writes the backward pass by hand.
Under autocast only the operands of matrix products are rounded to 16 bits; sums, states, mu and v stay float32.

Shapes: T time, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of the posterior,
G = 4 H gates in the order o, i, f, u, P = G + M all that is computed from h_{t-1}.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from zfdist.model.bptt import BPTT
from zfdist.model.cell import GATES, State, cell, clamp_latent, clipped_leaky_relu, linear, no_autocast, operand_dtype
from zfdist.model.distributions import widen

Implementation = Literal["auto", "reference", "bptt"]


class Unrolled(NamedTuple):
    """What the loop gives back, for all steps, and the state after the last."""

    h_TBH: Tensor
    z_TBZ: Tensor
    mu_TBZ: Tensor
    logvar_TBZ: Tensor
    state: State


class Recurrence(nn.Module):
    """The weights inside the loop, and the loop; one module, so that ZeRO-3 gathers it once per call."""

    def __init__(
        self, hidden: int, z_dim: int, mlp_dim: int, latent_clamp: float, implementation: Implementation = "auto"
    ) -> None:
        super().__init__()
        self.latent_clamp = latent_clamp
        self.implementation = implementation
        self.w_h_GH = nn.Parameter(torch.empty(GATES * hidden, hidden))
        self.w_z_GZ = nn.Parameter(torch.empty(GATES * hidden, z_dim))
        self.w_a_MH = nn.Parameter(torch.empty(mlp_dim, hidden))
        self.w_q_QM = nn.Parameter(torch.empty(2 * z_dim, mlp_dim))
        self.b_q_Q = nn.Parameter(torch.zeros(2 * z_dim))
        for gate_HH in self.w_h_GH.detach().chunk(GATES):
            nn.init.orthogonal_(gate_HH)
        for weight, fan_in in ((self.w_z_GZ, hidden), (self.w_a_MH, 2 * hidden), (self.w_q_QM, mlp_dim)):
            nn.init.uniform_(weight, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))

    def forward(self, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, state: State) -> Unrolled:
        """Run all steps with z from the posterior.

        Differentiable in `gx_TBG`, `qb_TBM`, `state` and the weights; in `eps_TBZ`, and twice, by `reference` only.
        """
        gx_TBG, qb_TBM, eps_TBZ = widen(gx_TBG), widen(qb_TBM), widen(eps_TBZ)
        state = State(widen(state.h_BH), widen(state.c_BH))
        narrow = operand_dtype(gx_TBG)
        with no_autocast(gx_TBG):
            if self._by_hand(eps_TBZ):
                weights = (self.w_h_GH, self.w_z_GZ, self.w_a_MH, self.w_q_QM, self.b_q_Q)
                h_TBH, z_TBZ, q_TBQ, c_BH = BPTT.apply(
                    gx_TBG, qb_TBM, eps_TBZ, *state, *weights, self.latent_clamp, narrow
                )  # type: ignore[no-untyped-call]
            else:
                h_TBH, z_TBZ, q_TBQ, c_BH = self._reference(gx_TBG, qb_TBM, eps_TBZ, state, narrow)
        mu_TBZ, logvar_TBZ = q_TBQ.chunk(2, dim=-1)
        return Unrolled(h_TBH, z_TBZ, mu_TBZ, logvar_TBZ, State(h_TBH[-1], c_BH))

    def step(self, gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        """Run the cell once with a given z: the generative path, where z comes from the prior.

        Reads the weights outside `forward`: for a whole module, not for one that ZeRO-3 has partitioned.
        """
        narrow = operand_dtype(widen(gx_BG))
        with no_autocast(gx_BG):
            g_BG = widen(gx_BG) + linear(state.h_BH, self.w_h_GH, narrow) + linear(z_BZ, self.w_z_GZ, narrow)
            return cell(g_BG, state.c_BH)

    def _by_hand(self, eps_TBZ: Tensor) -> bool:
        # Without a gradient the plain loop keeps nothing and saves the memory of the slabs.
        fits = torch.is_grad_enabled() and not eps_TBZ.requires_grad
        return self.implementation == "bptt" or (self.implementation == "auto" and fits)

    def _reference(
        self, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, state: State, narrow: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h_TBH, z_TBZ, q_TBQ = [], [], []
        w_p_PH = torch.cat([self.w_h_GH, self.w_a_MH])
        gates = self.w_h_GH.shape[0]
        for gx_BG, qb_BM, eps_BZ in zip(gx_TBG, qb_TBM, eps_TBZ, strict=True):
            p_BP = linear(state.h_BH, w_p_PH, narrow)
            a_BM = clipped_leaky_relu(p_BP[:, gates:] + qb_BM)
            q_BQ = clamp_latent(linear(a_BM, self.w_q_QM, narrow) + self.b_q_Q, self.latent_clamp)
            mu_BZ, logvar_BZ = q_BQ.chunk(2, dim=-1)
            z_BZ = mu_BZ + torch.exp(0.5 * logvar_BZ) * eps_BZ
            state = cell(gx_BG + p_BP[:, :gates] + linear(z_BZ, self.w_z_GZ, narrow), state.c_BH)
            h_TBH.append(state.h_BH)
            z_TBZ.append(z_BZ)
            q_TBQ.append(q_BQ)
        return torch.stack(h_TBH), torch.stack(z_TBZ), torch.stack(q_TBQ), state.c_BH
