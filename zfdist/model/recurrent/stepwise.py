"""The loop over time by autograd, around the step of a switch that the implementations by hand do not know.

    q_t           = Wq clip(lrelu(h_{t-1} Wa' + qb_t)) + bq  mean and log variance, clamped; q_t in [B, Q]

Shapes: T time, B batch, H hidden, Z latent, Q = 2 Z mean and log variance, M hidden units of the nets, G = 4 H gates.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zfdist.model.kernels.lstm_cell import State, clamp_latent, clipped_leaky_relu, no_autocast
from zfdist.model.kernels.mixed_precision import widen
from zfdist.model.recurrent.recurrence import Unrolled


class StepwiseRecurrence(nn.Module):
    """The loop around a `step`; called like zfdist.model.recurrent.recurrence.Recurrence.

    A subclass makes these in its `__init__`, since new weights depend on the order in which they are made.
    """

    latent_clamp: float
    posterior_h: nn.Module
    posterior: nn.Module

    @abstractmethod
    def step(self, gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        """Run the cell once with a given z."""

    def forward(self, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, state: State) -> Unrolled:
        """Run all steps with z from the posterior."""
        h_TBH, z_TBZ, q_TBQ = [], [], []
        for gx_BG, qb_BM, eps_BZ in zip(gx_TBG, qb_TBM, eps_TBZ, strict=True):
            q_BQ = self._posterior(state.h_BH, qb_BM)
            mu_BZ, logvar_BZ = q_BQ.chunk(2, dim=-1)
            z_BZ = mu_BZ + torch.exp(0.5 * logvar_BZ) * eps_BZ
            state = self.step(gx_BG, z_BZ, state)
            h_TBH.append(state.h_BH)
            z_TBZ.append(z_BZ)
            q_TBQ.append(q_BQ)
        mu_TBZ, logvar_TBZ = torch.stack(q_TBQ).chunk(2, dim=-1)
        return Unrolled(torch.stack(h_TBH), torch.stack(z_TBZ), mu_TBZ, logvar_TBZ, state)

    def stepping(self, steps: int) -> Callable[[Tensor, Tensor, State], State]:
        """Return `step`, which serves loops of any length."""
        return self.step

    def _posterior(self, h_BH: Tensor, qb_BM: Tensor) -> Tensor:
        a_BM = clipped_leaky_relu(self.posterior_h(h_BH) + widen(qb_BM))
        with no_autocast(a_BM):
            return clamp_latent(self.posterior(a_BM), self.latent_clamp)
