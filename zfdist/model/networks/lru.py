"""Linear recurrent units (Orvieto et al., 2023), beyond the paper: a deep linear state space; an exact likelihood.

    s_t = lambda * s_{t-1} + gamma * (B u_t)         lambda = exp(-exp(nu) + i exp(theta)), a complex number a unit
    r_t = Re(C s_t) + D * u_t                        u_t = LayerNorm(e_t), e_t the block's input
    e_t + V GELU(r_t) * sigmoid(W GELU(r_t))         the input of the next block; of the last one, what f_o reads

Nothing but the sum before s_t depends on the step before, so all steps of a block are computed at once, in log2(T)
rounds; generation calls the same with one step, from the state.

Shapes: T time, B batch, X values of a frame (tokens have none), H hidden (units of a block, and its states, complex),
Z latent; N rows of noise, K * B.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.lstm_cell import no_autocast
from zfdist.model.kernels.mixed_precision import WideLinear
from zfdist.model.layers import Output, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step, exact_pass
from zfdist.model.terms import Terms, exact_terms

States = tuple[Tensor, ...]
"""s_t of each block, complex: [B, H]."""
_FASTEST, _SLOWEST = 0.5, 0.99  # |lambda| at the start lies between: a memory of 2 to 100 steps


class Lru(Network):
    """Blocks of linear recurrent units and an output net; noise of z is not used."""

    has_latents: ClassVar[bool] = False

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return log p(x_{t+1} | x_1 .. x_t), computed once for all trajectories; all other terms are zero."""
        return exact_terms(repeat_batch(self.output(self._read(x_TBX, None)[0], y_TBX), eps_TNZ))

    def _assemble(self, embedded: int) -> None:
        self.input = nn.Linear(embedded, self.config.hidden)
        self.blocks = nn.ModuleList(_Block(self.config.hidden) for _ in range(self.config.lru_blocks))
        self.output = Output(self.config, self.config.hidden, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        features_TBH, states = self._read(x_TBX, None)
        return exact_pass(repeat_batch(features_TBH, eps_TNZ), eps_TNZ, states)

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> None:
        return None  # s = 0

    def _stepping(self, steps: int) -> Step:
        def step(states: States | None, x_BX: Tensor, draw: Draw) -> tuple[Tensor, States]:
            features_TBH, states = self._read(x_BX[None], states)
            return draw.observation(features_TBH[0]), states

        return step

    def _read(self, x_TBX: Tensor, states: States | None) -> tuple[Tensor, States]:
        """Return what the output net reads at every step, and the states after the last."""
        e_TBH, last = self.input(self.embed(x_TBX)), []
        for number, block in enumerate(self.blocks):
            e_TBH, state_BH = block(e_TBH, None if states is None else states[number])
            last.append(state_BH)
        return e_TBH, tuple(last)


class _Block(nn.Module):
    """Norm, linear recurrence, non-linearity and gate, with a way around them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        radius = torch.empty(hidden).uniform_(_FASTEST**2, _SLOWEST**2).sqrt()
        self.norm = nn.LayerNorm(hidden)
        self.log_nu = nn.Parameter((-radius.log()).log())
        self.log_theta = nn.Parameter(torch.empty(hidden).uniform_(1e-3, math.pi).log())
        self.log_gamma = nn.Parameter((1.0 - radius.square()).sqrt().log())  # so that s varies as much as its input
        self.drive = WideLinear(hidden, 2 * hidden, bias=False)  # B: real and imaginary parts of each state
        self.read = WideLinear(2 * hidden, hidden, bias=False)  # C, likewise
        self.skip = nn.Parameter(torch.ones(hidden))  # D
        self.mix = nn.Linear(hidden, 2 * hidden)  # V and W

    def forward(self, e_TBH: Tensor, state_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the next block's input and the state after the last step, from s = 0 or a state."""
        u_TBH = self.norm(e_TBH)
        drive_TBH = torch.view_as_complex(self.drive(u_TBH).unflatten(-1, (-1, 2)))
        with no_autocast(e_TBH):
            lambda_H = torch.exp(torch.complex(-self.log_nu.exp(), self.log_theta.exp()))
            s_TBH = linear_recurrence(lambda_H, self.log_gamma.exp() * drive_TBH, state_BH)
        r_TBH = F.gelu(self.read(torch.view_as_real(s_TBH).flatten(-2)) + self.skip * u_TBH)
        value_TBH, gate_TBH = self.mix(r_TBH).chunk(2, dim=-1)
        return e_TBH + value_TBH * torch.sigmoid(gate_TBH), s_TBH[-1]


def linear_recurrence(lambda_H: Tensor, drive_TBH: Tensor, state_BH: Tensor | None = None) -> Tensor:
    """Return s_t = lambda * s_{t-1} + drive_t at all steps, from s = 0 or a state: [T, B, H], complex.

    Differentiable once; keeps nothing but its result for that, however many steps there are.
    """
    state_BH = torch.zeros_like(drive_TBH[0]) if state_BH is None else state_BH
    s_TBH: Tensor = _LinearRecurrence.apply(lambda_H, drive_TBH, state_BH)  # type: ignore[no-untyped-call]
    return s_TBH


class _LinearRecurrence(torch.autograd.Function):
    """The gradient of a linear recurrence is the conjugate one, from the last step to the first."""

    @staticmethod
    def forward(ctx: Any, lambda_H: Tensor, drive_TBH: Tensor, state_BH: Tensor) -> Tensor:
        s_TBH = _summed(lambda_H, torch.cat([drive_TBH[:1] + lambda_H * state_BH, drive_TBH[1:]]))
        ctx.save_for_backward(lambda_H, s_TBH, state_BH)
        return s_TBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ds_TBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lambda_H, s_TBH, state_BH = ctx.saved_tensors
        conjugate_H = lambda_H.conj()
        ddrive_TBH = _summed(conjugate_H, ds_TBH.flip(0)).flip(0)
        before_TBH = torch.cat([state_BH[None], s_TBH[:-1]])
        return (before_TBH.conj() * ddrive_TBH).sum((0, 1)), ddrive_TBH, conjugate_H * ddrive_TBH[0]


def _summed(lambda_H: Tensor, s_TBH: Tensor) -> Tensor:
    """Return sum_j lambda^j drive_{t-j} by doubling: each of log2(T) rounds adds up twice as many drives as before."""
    power_H, reach = lambda_H, 1
    while reach < len(s_TBH):
        s_TBH = torch.cat([s_TBH[:reach], s_TBH[reach:] + power_H * s_TBH[:-reach]])
        power_H, reach = power_H.square(), 2 * reach
    return s_TBH
