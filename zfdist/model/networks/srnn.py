"""SRNN (Fraccaro et al., 2016), smoothing, with a residual posterior: a chain of latents over a plain LSTM.

    d_t = LSTM(x_t, d_{t-1})             p(z_t | z_{t-1}, d_t)          p(x_{t+1} | z_t, d_t)
    a_t = LSTM_a([d_t, x_{t+1}], a_{t+1})          q(z_t | z_{t-1}, a_t), its mean the prior's plus a residual

Both LSTMs run over all steps in one call; only the chain of the latents, z_0 = 0, is a loop, that of
zfdist.model.recurrent.latent_chain.

Shapes: T time, B batch, X values of a frame (tokens have none), N noise of an observation, E embedded observation,
H hidden, Z latent, M hidden units of the nets.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.kernels.mixed_precision import WideLinear, widen
from zfdist.model.layers import (
    Output,
    embedded_size,
    embedding,
    first_input,
    inference_embedding,
    initialise,
    label_head,
    repeat_batch,
)
from zfdist.model.recurrent.latent_chain import Chain, LatentChain
from zfdist.model.recurrent.lstm import LSTM, BackwardLSTM
from zfdist.model.terms import Generated, Inferred, Terms, latent_terms


class SrnnState(NamedTuple):
    """What one time step hands to the next."""

    d: State | None  # None before the first frame
    z_BZ: Tensor


class Srnn(nn.Module):
    """SRNN over frames of `x_dim` values, or over `x_dim` words; called like `ZForcing`."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        hidden, embedded = config.hidden, embedded_size(config, x_dim)
        self.embed = embedding(config, x_dim)
        self.embed_inference = inference_embedding(config, x_dim)
        self.deterministic = LSTM(embedded, hidden)
        self.smoother = BackwardLSTM(hidden + embedded, hidden)
        self.prior_d = WideLinear(hidden, config.mlp_dim)
        self.posterior_a = WideLinear(hidden, config.mlp_dim)
        self.chain = LatentChain(config.z_dim, config.mlp_dim, config.latent_clamp, config.recurrence)
        self.output = Output(config, hidden + config.z_dim, x_dim)
        self.label = label_head(config)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the bound; shapes as in `ZForcing.forward`."""
        d_TBH, _ = self.deterministic(self.embed(x_TBX))
        chain = self._chain(d_TBH, y_TBX, lengths_B, eps_TNZ)
        is_many = eps_TNZ.shape[1] != len(lengths_B)
        return latent_terms(
            self.output(torch.cat([repeat_batch(d_TBH, eps_TNZ), chain.z_TBZ], dim=-1), repeat_batch(y_TBX, eps_TNZ)),
            chain.prior,
            chain.posterior,
            chain.z_TBZ,
            label_logits_BC=None if self.label is None or is_many else self.label(chain.posterior.mean, lengths_B),
        )

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        d_TBH, state = self.deterministic(self.embed(x_TBX))
        chain = self._chain(d_TBH, y_TBX, lengths_B, eps_TBZ)
        features_TBH = torch.cat([d_TBH, chain.z_TBZ], dim=-1)
        return Inferred(chain.z_TBZ, chain.posterior.mean, features_TBH, SrnnState(state, chain.z_TBZ[-1]))

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Density:
        """Return p(x_{t+1} | z_t, d_t) for all steps, with z from the posterior and the true x_t as input."""
        return self.output.density(self.infer(x_TBX, y_TBX, lengths_B, eps_TBZ).features_TBH)

    def generate(
        self,
        eps_TBZ: Tensor,
        eps_TBN: Tensor,
        *,
        z_TBZ: Tensor | None = None,
        temperature: float = 1.0,
        state: SrnnState | None = None,
        x_BX: Tensor | None = None,
    ) -> Generated:
        """Draw T observations, with z from the prior or given; as `ZForcing.generate`."""
        x_BX = first_input(self.config, self.x_dim, eps_TBN) if x_BX is None else x_BX
        state = SrnnState(None, torch.zeros_like(eps_TBZ[0])) if state is None else state
        drawn, step = [], self.deterministic.stepping(len(eps_TBN))
        for t, eps_BN in enumerate(eps_TBN):
            d = step(self.embed(x_BX), state.d)
            prior = self.chain.step(self.prior_d(d.h_BH), state.z_BZ)
            state = SrnnState(d, prior.sample(eps_TBZ[t]) if z_TBZ is None else z_TBZ[t])
            x_BX = self.output.density(torch.cat([d.h_BH, state.z_BZ], dim=-1)).sample(eps_BN, temperature)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)

    def _chain(self, d_TBH: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Chain:
        embed = self.embed if self.embed_inference is None else self.embed_inference
        a_TBH = self.smoother(torch.cat([d_TBH, widen(embed(y_TBX))], dim=-1), lengths_B)
        pd_TNM, qa_TNM = (repeat_batch(part, eps_TNZ) for part in (self.prior_d(d_TBH), self.posterior_a(a_TBH)))
        chain: Chain = self.chain(pd_TNM, qa_TNM, eps_TNZ, torch.zeros_like(eps_TNZ[0]))
        return chain
