"""The plain recurrent network: h_t = LSTM(x_t, h_{t-1}), p(x_{t+1} | h_t); no latents, an exact likelihood.

Shapes: T time, B batch, X values of a frame (tokens have none), N noise of an observation, H hidden, Z latent.
"""

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.layers import Output, embedded_size, embedding, first_input, initialise, repeat_batch
from zfdist.model.recurrent.lstm import LSTM
from zfdist.model.terms import Generated, Inferred, Terms


class Rnn(nn.Module):
    """An LSTM over frames of `x_dim` values, or over `x_dim` words; called like `ZForcing`, noise of z unused."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        self.embed = embedding(config, x_dim)
        self.lstm = LSTM(embedded_size(config, x_dim), config.hidden)
        self.output = Output(config, config.hidden, x_dim)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return log p(x_{t+1} | x_1 .. x_t); all other terms are zero."""
        log_px_TN = repeat_batch(self.output(self.lstm(self.embed(x_TBX))[0], y_TBX), eps_TNZ)
        zeros_TN = torch.zeros_like(log_px_TN)
        return Terms(log_px_TN, zeros_TN, zeros_TN, zeros_TN, zeros_TN)

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return the state after all inputs; latents, which it does not have, as zeros."""
        h_TBH, state = self.lstm(self.embed(x_TBX))
        zeros_TBZ = torch.zeros_like(eps_TBZ)
        return Inferred(zeros_TBZ, zeros_TBZ, h_TBH, state)

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Density:
        """Return p(x_{t+1} | x_1 .. x_t) for all steps."""
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
        """Draw T observations, each fed back as the next input; as `ZForcing.generate`, without latents."""
        x_BX = first_input(self.config, self.x_dim, eps_TBN) if x_BX is None else x_BX
        drawn, step = [], self.lstm.stepping(len(eps_TBN))
        for eps_BN in eps_TBN:
            state = step(self.embed(x_BX), state)
            x_BX = self.output.density(state.h_BH).sample(eps_BN, temperature)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)
