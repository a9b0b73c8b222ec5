"""STORN (Bayer and Osendorfer, 2014): independent latents, inferred by a second forward network.

    z_t ~ N(0, I)        h_t = LSTM([x_t, z_t], h_{t-1})        p(x_{t+1} | h_t)
    g_t = LSTM_q(x_{t+1}, g_{t-1}), g_0 = LSTM_q(x_1, 0)        q(z_t | g_t): it has read x_1 .. x_{t+1}

No latent depends on another, so every network runs over all steps in one call.

Shapes: T time, B batch, X values of a frame (tokens have none), N noise of an observation, E embedded observation,
H hidden, Z latent.
"""

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density
from zfdist.model.distributions import Gaussian, standard_gaussian
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.layers import (
    Head,
    Output,
    clamped_gaussian,
    embedded_size,
    embedding,
    first_input,
    inference_embedding,
    initialise,
    label_head,
    repeat_batch,
)
from zfdist.model.recurrent.lstm import LSTM
from zfdist.model.terms import Generated, Inferred, Terms, latent_terms


class Storn(nn.Module):
    """STORN over frames of `x_dim` values, or over `x_dim` words; called like `ZForcing`."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        embedded = embedded_size(config, x_dim)
        self.embed = embedding(config, x_dim)
        self.embed_inference = inference_embedding(config, x_dim)
        self.lstm = LSTM(embedded + config.z_dim, config.hidden)
        self.inference_net = LSTM(embedded, config.hidden)
        self.posterior = Head(config.hidden, config.mlp_dim, 2 * config.z_dim)
        self.output = Output(config, config.hidden, x_dim)
        self.label = label_head(config)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the bound; shapes as in `ZForcing.forward`."""
        posterior = Gaussian(*(repeat_batch(part, eps_TNZ) for part in self._posterior(x_TBX, y_TBX)))
        z_TNZ = posterior.sample(eps_TNZ)
        is_many = eps_TNZ.shape[1] != len(lengths_B)
        return latent_terms(
            self.output(self._unroll(repeat_batch(x_TBX, eps_TNZ), z_TNZ, None)[0], repeat_batch(y_TBX, eps_TNZ)),
            standard_gaussian(z_TNZ),
            posterior,
            z_TNZ,
            label_logits_BC=None if self.label is None or is_many else self.label(posterior.mean, lengths_B),
        )

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        posterior = self._posterior(x_TBX, y_TBX)
        z_TBZ = posterior.sample(eps_TBZ)
        return Inferred(z_TBZ, posterior.mean, *self._unroll(x_TBX, z_TBZ, None))

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Density:
        """Return p(x_{t+1} | h_t) for all steps, with z from the posterior and the true x_t as input."""
        return self.output.density(self.infer(x_TBX, y_TBX, lengths_B, eps_TBZ).features_TBH)

    def generate(
        self,
        eps_TBZ: Tensor,
        eps_TBN: Tensor,
        *,
        z_TBZ: Tensor | None = None,
        temperature: float = 1.0,
        state: State | None = None,
        x_BX: Tensor | None = None,
    ) -> Generated:
        """Draw T observations, with z from N(0, I) or given; as `ZForcing.generate`."""
        x_BX = first_input(self.config, self.x_dim, eps_TBN) if x_BX is None else x_BX
        z_TBZ = eps_TBZ if z_TBZ is None else z_TBZ
        drawn, step = [], self.lstm.stepping(len(eps_TBN))
        for z_BZ, eps_BN in zip(z_TBZ, eps_TBN, strict=True):
            state = step(self._read(x_BX, z_BZ), state)
            x_BX = self.output.density(state.h_BH).sample(eps_BN, temperature)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)

    def _posterior(self, x_TBX: Tensor, y_TBX: Tensor) -> Gaussian:
        embed = self.embed if self.embed_inference is None else self.embed_inference
        g_TBH = self.inference_net(embed(torch.cat([x_TBX[:1], y_TBX])))[0][1:]
        return clamped_gaussian(self.posterior(g_TBH), self.config.latent_clamp)

    def _unroll(self, x_TBX: Tensor, z_TBZ: Tensor, state: State | None) -> tuple[Tensor, State]:
        read: tuple[Tensor, State] = self.lstm(self._read(x_TBX, z_TBZ), state)
        return read

    def _read(self, x_TBX: Tensor, z_TBZ: Tensor) -> Tensor:
        return torch.cat([self.embed(x_TBX), z_TBZ], dim=-1)
