"""VRNN (Chung et al., 2015): latents that see the frame they explain and no further future.

    h_0 = LSTM([x_1, 0], 0)            p(z_t | h_{t-1}), or N(0, I)       q(z_t | x_{t+1}, h_{t-1})
    p(x_{t+1} | z_t, h_{t-1})          h_t = LSTM([x_{t+1}, z_t], h_{t-1})

so h_{t-1} has read x_1 .. x_t. Given x_{t+1} in the place of both x_t and b_t this is the loop of Z-Forcing, and
zfdist.model.recurrent.recurrence runs it. With the switch vrnn_features all nets read phi_x(x) and phi_z(z) in place
of x and z, as published, and zfdist.model.recurrent.feature_recurrence runs the loop.

Shapes: T time, B batch, X values of a frame (tokens have none), N noise of an observation, E embedded observation,
H hidden, Z latent, M hidden units of the nets and features, G = 4 H gates.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density
from zfdist.model.distributions import Gaussian, latent_gaussian, standard_gaussian
from zfdist.model.kernels.lstm_cell import GATES, State, cell, zero_state
from zfdist.model.kernels.mixed_precision import WideLinear
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
from zfdist.model.recurrent.feature_recurrence import FeatureRecurrence, Features
from zfdist.model.recurrent.recurrence import Recurrence, Unrolled
from zfdist.model.terms import Generated, Inferred, Terms, latent_terms


class _Walk(NamedTuple):
    """One pass over a batch: the loop's results, and h_{t-1} at every step."""

    unrolled: Unrolled
    h_before_TBH: Tensor


class Vrnn(nn.Module):
    """VRNN over frames of `x_dim` values, or over `x_dim` words; called like `ZForcing`."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        hidden, z_dim, mlp_dim = config.hidden, config.z_dim, config.mlp_dim
        embedded, latent = embedded_size(config, x_dim), z_dim
        self.embed = embedding(config, x_dim)
        self.embed_inference = inference_embedding(config, x_dim)
        self.features_x = Features(embedded, mlp_dim) if config.vrnn_features else None
        if config.vrnn_features:
            embedded = latent = mlp_dim
        self.input = WideLinear(embedded, GATES * hidden)
        self.posterior_y = WideLinear(embedded, mlp_dim)
        self.recurrence: Recurrence | FeatureRecurrence
        if config.vrnn_features:
            self.recurrence = FeatureRecurrence(hidden, z_dim, mlp_dim, config.latent_clamp)
        else:
            self.recurrence = Recurrence(hidden, z_dim, mlp_dim, config.latent_clamp, config.recurrence)
        self.prior = Head(hidden, mlp_dim, 2 * z_dim) if config.vrnn_prior == "learned" else None
        self.output = Output(config, hidden + latent, x_dim)
        self.label = label_head(config)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the bound; shapes as in `ZForcing.forward`."""
        unrolled, h_before_TBH = self._walk(x_TBX, y_TBX, eps_TNZ)
        is_many = eps_TNZ.shape[1] != len(lengths_B)
        return latent_terms(
            self.output(self._seen(h_before_TBH, unrolled.z_TBZ), repeat_batch(y_TBX, eps_TNZ)),
            self._prior(h_before_TBH, unrolled.z_TBZ),
            latent_gaussian(unrolled.mu_TBZ, unrolled.logvar_TBZ),
            unrolled.z_TBZ,
            label_logits_BC=None if self.label is None or is_many else self.label(unrolled.mu_TBZ, lengths_B),
        )

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        unrolled, h_before_TBH = self._walk(x_TBX, y_TBX, eps_TBZ)
        return Inferred(unrolled.z_TBZ, unrolled.mu_TBZ, self._seen(h_before_TBH, unrolled.z_TBZ), unrolled.state)

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Density:
        """Return p(x_{t+1} | z_t, h_{t-1}) for all steps, with z from the posterior."""
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
        """Draw T observations as `ZForcing.generate`; a given `state` has read the last observation already."""
        if state is None:
            state = self._begin(first_input(self.config, self.x_dim, eps_TBN) if x_BX is None else x_BX)
        drawn, step = [], self.recurrence.stepping(len(eps_TBN))
        for t, eps_BN in enumerate(eps_TBN):
            z_BZ = self._prior(state.h_BH, eps_TBZ[t]).sample(eps_TBZ[t]) if z_TBZ is None else z_TBZ[t]
            x_BX = self.output.density(self._seen(state.h_BH, z_BZ)).sample(eps_BN, temperature)
            state = step(self.input(self._read(x_BX, self.embed)), z_BZ, state)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)

    def _begin(self, x_BX: Tensor) -> State:
        """Return h_0, which has read x_1 and a latent of 0."""
        g_BG = self.input(self._read(x_BX, self.embed))
        start = zero_state(len(x_BX), self.config.hidden, g_BG)
        if isinstance(self.recurrence, FeatureRecurrence):
            return self.recurrence.step(g_BG, g_BG.new_zeros(len(x_BX), self.config.z_dim), start)  # phi_z(0) is not 0
        return cell(g_BG, start.c_BH)

    def _walk(self, x_TBX: Tensor, y_TBX: Tensor, eps_TNZ: Tensor) -> _Walk:
        start = self._begin(repeat_batch(x_TBX[:1], eps_TNZ)[0])
        embed = self.embed if self.embed_inference is None else self.embed_inference
        gx_TNG, qy_TNM = (
            repeat_batch(part, eps_TNZ)
            for part in (self.input(self._read(y_TBX, self.embed)), self.posterior_y(self._read(y_TBX, embed)))
        )
        unrolled: Unrolled = self.recurrence(gx_TNG, qy_TNM, eps_TNZ, start)
        return _Walk(unrolled, torch.cat([start.h_BH[None], unrolled.h_TBH[:-1]]))

    def _read(self, x_TBX: Tensor, embed: nn.Module) -> Tensor:
        """Return what the nets read of observations."""
        e_TBE: Tensor = embed(x_TBX)
        return e_TBE if self.features_x is None else self.features_x(e_TBE)

    def _seen(self, h_TBH: Tensor, z_TBZ: Tensor) -> Tensor:
        """Return what the output net reads: h_{t-1} and z_t."""
        seen = self.recurrence.features(z_TBZ) if isinstance(self.recurrence, FeatureRecurrence) else z_TBZ
        return torch.cat([h_TBH, seen], dim=-1)

    def _prior(self, h_TBH: Tensor, like_TBZ: Tensor) -> Gaussian:
        if self.prior is None:
            return standard_gaussian(like_TBZ)
        return clamped_gaussian(self.prior(h_TBH), self.config.latent_clamp)
