"""VRNN (Chung et al., 2015): latents that see the frame they explain and no further future.

    h_0 = LSTM([x_1, 0], 0)            p(z_t | h_{t-1}), or N(0, I)       q(z_t | x_{t+1}, h_{t-1})
    p(x_{t+1} | z_t, h_{t-1})          h_t = LSTM([x_{t+1}, z_t], h_{t-1})

so h_{t-1} has read x_1 .. x_t. Given x_{t+1} in the place of both x_t and b_t this is the loop of Z-Forcing, and
zfdist.model.recurrent.recurrence runs it. With the switch vrnn_features all nets read phi_x(x) and phi_z(z) in place
of x and z, as published, and zfdist.model.recurrent.feature_recurrence runs the loop.

Shapes: T time, B batch, X values of a frame (tokens have none), E embedded observation, H hidden, Z latent, M hidden
units of the nets and features, G = 4 H gates; N rows of noise, K * B.
"""

import torch
from torch import Tensor

from zfdist.model.distributions import Gaussian, latent_gaussian, standard_gaussian
from zfdist.model.kernels.lstm_cell import GATES, State, cell, zero_state
from zfdist.model.kernels.mixed_precision import WideLinear
from zfdist.model.layers import Head, Output, clamped_gaussian, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step
from zfdist.model.recurrent.feature_recurrence import FeatureRecurrence, Features
from zfdist.model.recurrent.recurrence import Recurrence, Unrolled


class Vrnn(Network):
    """The loop of Z-Forcing without a backward net."""

    def _assemble(self, embedded: int) -> None:
        config = self.config
        hidden, mlp_dim, latent = config.hidden, config.mlp_dim, config.z_dim
        self.features_x = Features(embedded, mlp_dim) if config.vrnn_features else None
        if config.vrnn_features:
            embedded = latent = mlp_dim
        self.input = WideLinear(embedded, GATES * hidden)
        self.posterior_y = WideLinear(embedded, mlp_dim)
        self.recurrence: Recurrence | FeatureRecurrence
        if config.vrnn_features:
            self.recurrence = FeatureRecurrence(hidden, config.z_dim, mlp_dim, config.latent_clamp)
        else:
            self.recurrence = Recurrence(hidden, config.z_dim, mlp_dim, config.latent_clamp, config.recurrence)
        self.prior = Head(hidden, mlp_dim, 2 * config.z_dim) if config.vrnn_prior == "learned" else None
        self.output = Output(config, hidden + latent, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        start = self._begin(repeat_batch(x_TBX[:1], eps_TNZ)[0])
        gx_TNG, qy_TNM = (
            repeat_batch(part, eps_TNZ)
            for part in (self._input(y_TBX), self.posterior_y(self._extracted(self._embed_for_inference(y_TBX))))
        )
        unrolled: Unrolled = self.recurrence(gx_TNG, qy_TNM, eps_TNZ, start)
        h_before_TNH = torch.cat([start.h_BH[None], unrolled.h_TBH[:-1]])
        return Pass(
            self._seen(h_before_TNH, unrolled.z_TBZ),
            lambda: self._prior(h_before_TNH),
            latent_gaussian(unrolled.mu_TBZ, unrolled.logvar_TBZ),
            unrolled.z_TBZ,
            unrolled.state,
        )

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> State:
        return self._begin(x_BX)

    def _stepping(self, steps: int) -> Step:
        loop_step = self.recurrence.stepping(steps)

        def step(state: State, x_BX: Tensor, draw: Draw) -> tuple[Tensor, State]:
            z_BZ = draw.latent(lambda: self._prior(state.h_BH))
            x_BX = draw.observation(self._seen(state.h_BH, z_BZ))  # the one before, the state has read already
            return x_BX, loop_step(self._input(x_BX), z_BZ, state)

        return step

    def _begin(self, x_BX: Tensor) -> State:
        """Return h_0, which has read x_1 and a latent of 0."""
        g_BG = self._input(x_BX)
        start = zero_state(len(x_BX), self.config.hidden, g_BG)
        if isinstance(self.recurrence, FeatureRecurrence):
            return self.recurrence.step(g_BG, g_BG.new_zeros(len(x_BX), self.config.z_dim), start)  # phi_z(0) is not 0
        return cell(g_BG, start.c_BH)

    def _input(self, x_TBX: Tensor) -> Tensor:
        gx_TBG: Tensor = self.input(self._extracted(self.embed(x_TBX)))
        return gx_TBG

    def _extracted(self, e_TBE: Tensor) -> Tensor:
        """Return what the nets read of embedded observations."""
        return e_TBE if self.features_x is None else self.features_x(e_TBE)

    def _seen(self, h_TBH: Tensor, z_TBZ: Tensor) -> Tensor:
        """Return what the output net reads: h_{t-1} and z_t."""
        seen = self.recurrence.features(z_TBZ) if isinstance(self.recurrence, FeatureRecurrence) else z_TBZ
        return torch.cat([h_TBH, seen], dim=-1)

    def _prior(self, h_TBH: Tensor) -> Gaussian:
        if self.prior is None:
            return standard_gaussian(h_TBH.new_zeros(*h_TBH.shape[:-1], self.config.z_dim))
        return clamped_gaussian(self.prior(h_TBH), self.config.latent_clamp)
