"""STORN (Bayer and Osendorfer, 2014): independent latents, inferred by a second forward network.

    z_t ~ N(0, I)        h_t = LSTM([x_t, z_t], h_{t-1})        p(x_{t+1} | h_t)
    g_t = LSTM_q(x_{t+1}, g_{t-1}), g_0 = LSTM_q(x_1, 0)        q(z_t | g_t): it has read x_1 .. x_{t+1}

No latent depends on another, so every network runs over all steps in one call.

Shapes: T time, B batch, X values of a frame (tokens have none), H hidden, Z latent; N rows of noise, K * B.
"""

import torch
from torch import Tensor

from zfdist.model.distributions import Gaussian, standard_gaussian
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.layers import Head, Output, clamped_gaussian, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step
from zfdist.model.recurrent.lstm import LSTM


class Storn(Network):
    """The generating LSTM, and the one of inference."""

    def _assemble(self, embedded: int) -> None:
        config = self.config
        self.lstm = LSTM(embedded + config.z_dim, config.hidden)
        self.inference_net = LSTM(embedded, config.hidden)
        self.posterior = Head(config.hidden, config.mlp_dim, 2 * config.z_dim)
        self.output = Output(config, config.hidden, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        g_TBH = self.inference_net(self._embed_for_inference(torch.cat([x_TBX[:1], y_TBX])))[0][1:]
        posterior = clamped_gaussian(self.posterior(g_TBH), self.config.latent_clamp)
        posterior = Gaussian(*(repeat_batch(part, eps_TNZ) for part in posterior))
        z_TNZ = posterior.sample(eps_TNZ)
        h_TNH, state = self.lstm(self._read(repeat_batch(x_TBX, eps_TNZ), z_TNZ))
        return Pass(h_TNH, lambda: standard_gaussian(z_TNZ), posterior, z_TNZ, state)

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> None:
        return None  # the LSTM's own beginning

    def _stepping(self, steps: int) -> Step:
        lstm_step = self.lstm.stepping(steps)

        def step(state: State | None, x_BX: Tensor, draw: Draw) -> tuple[Tensor, State]:
            state = lstm_step(self._read(x_BX, draw.latent_BZ), state)  # noise of N(0, I) is the latent itself
            return draw.observation(state.h_BH), state

        return step

    def _read(self, x_TBX: Tensor, z_TBZ: Tensor) -> Tensor:
        return torch.cat([self.embed(x_TBX), z_TBZ], dim=-1)
