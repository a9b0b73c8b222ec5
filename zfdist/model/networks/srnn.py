"""SRNN (Fraccaro et al., 2016), smoothing, with a residual posterior: a chain of latents over a plain LSTM.

    d_t = LSTM(x_t, d_{t-1})             p(z_t | z_{t-1}, d_t)          p(x_{t+1} | z_t, d_t)
    a_t = LSTM_a([d_t, x_{t+1}], a_{t+1})          q(z_t | z_{t-1}, a_t), its mean the prior's plus a residual

Both LSTMs run over all steps in one call; only the chain of the latents, z_0 = 0, is a loop, that of
zfdist.model.recurrent.latent_chain.

Shapes: T time, B batch, X values of a frame (tokens have none), H hidden, Z latent, M hidden units of the nets;
N rows of noise, K * B.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.lstm_cell import State
from zfdist.model.kernels.mixed_precision import WideLinear, widen
from zfdist.model.layers import Output, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step
from zfdist.model.recurrent.latent_chain import Chain, LatentChain
from zfdist.model.recurrent.lstm import LSTM, BackwardLSTM


class SrnnState(NamedTuple):
    """What one time step hands to the next."""

    d: State | None  # None before the first frame
    z_BZ: Tensor


class Srnn(Network):
    """The LSTM, the one that smooths, and the chain of the latents."""

    def _assemble(self, embedded: int) -> None:
        config, hidden = self.config, self.config.hidden
        self.deterministic = LSTM(embedded, hidden)
        self.smoother = BackwardLSTM(hidden + embedded, hidden)
        self.prior_d = WideLinear(hidden, config.mlp_dim)
        self.posterior_a = WideLinear(hidden, config.mlp_dim)
        self.chain = LatentChain(config.z_dim, config.mlp_dim, config.latent_clamp, config.recurrence)
        self.output = Output(config, hidden + config.z_dim, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        d_TBH, state = self.deterministic(self.embed(x_TBX))
        a_TBH = self.smoother(torch.cat([d_TBH, widen(self._embed_for_inference(y_TBX))], dim=-1), lengths_B)
        pd_TNM, qa_TNM = (repeat_batch(part, eps_TNZ) for part in (self.prior_d(d_TBH), self.posterior_a(a_TBH)))
        chain: Chain = self.chain(pd_TNM, qa_TNM, eps_TNZ, torch.zeros_like(eps_TNZ[0]))
        features_TNH = torch.cat([repeat_batch(d_TBH, eps_TNZ), chain.z_TBZ], dim=-1)
        return Pass(features_TNH, lambda: chain.prior, chain.posterior, chain.z_TBZ, SrnnState(state, chain.z_TBZ[-1]))

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> SrnnState:
        return SrnnState(None, torch.zeros_like(like_BZ))

    def _stepping(self, steps: int) -> Step:
        lstm_step = self.deterministic.stepping(steps)

        def step(state: SrnnState, x_BX: Tensor, draw: Draw) -> tuple[Tensor, SrnnState]:
            d = lstm_step(self.embed(x_BX), state.d)
            z_BZ = draw.latent(lambda: self.chain.step(self.prior_d(d.h_BH), state.z_BZ))
            return draw.observation(torch.cat([d.h_BH, z_BZ], dim=-1)), SrnnState(d, z_BZ)

        return step
