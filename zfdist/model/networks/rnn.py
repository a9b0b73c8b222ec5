"""The plain recurrent network: h_t = LSTM(x_t, h_{t-1}), p(x_{t+1} | h_t); no latents, an exact likelihood.

Shapes: T time, B batch, X values of a frame (tokens have none), H hidden, Z latent; N rows of noise, K * B.
"""

from typing import ClassVar

from torch import Tensor

from zfdist.model.kernels.lstm_cell import State
from zfdist.model.layers import Output, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step, exact_pass
from zfdist.model.recurrent.lstm import LSTM
from zfdist.model.terms import Terms, exact_terms


class Rnn(Network):
    """An LSTM and its output net; noise of z is not used, and what is said of latents is zero."""

    has_latents: ClassVar[bool] = False

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return log p(x_{t+1} | x_1 .. x_t), computed once for all trajectories; all other terms are zero."""
        return exact_terms(repeat_batch(self.output(self.lstm(self.embed(x_TBX))[0], y_TBX), eps_TNZ))

    def _assemble(self, embedded: int) -> None:
        self.lstm = LSTM(embedded, self.config.hidden)
        self.output = Output(self.config, self.config.hidden, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        h_TBH, state = self.lstm(self.embed(x_TBX))
        return exact_pass(repeat_batch(h_TBH, eps_TNZ), eps_TNZ, state)

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> None:
        return None  # the LSTM's own beginning

    def _stepping(self, steps: int) -> Step:
        lstm_step = self.lstm.stepping(steps)

        def step(state: State | None, x_BX: Tensor, draw: Draw) -> tuple[Tensor, State]:
            state = lstm_step(self.embed(x_BX), state)
            return draw.observation(state.h_BH), state

        return step
