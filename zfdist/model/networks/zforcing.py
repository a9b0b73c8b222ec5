"""Z-Forcing: the paper's stochastic recurrent network, equations (4) to (8).

Alignment: inputs are x_1 .. x_T, targets y_t = x_{t+1}. The backward net's state b_t has read y_T .. y_t and nothing
earlier; z_t and x_t give h_t; h_t predicts y_t; b_t predicts x_t; z_t predicts b_t. The network knows no weights
of the objective: it gives every term unreduced, and zfdist.model.objective is where they are masked and weighed.

Five switches are in its authors' code and not in the paper: aux_sees_h, latent_sees_x, output_skip, output_sees_z,
layer_norm_z.

Shapes: T time, B batch, X values of a frame (tokens have none), E embedded observation, H hidden, Z latent, M hidden
units of the nets, G = 4 H gates; N rows of noise, K * B.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from zfdist.model.densities import auxiliary_log_prob
from zfdist.model.distributions import Gaussian, latent_gaussian
from zfdist.model.kernels.lstm_cell import GATES, State, zero_state
from zfdist.model.kernels.mixed_precision import WideLinear
from zfdist.model.layers import Head, Output, clamped_gaussian, is_many, repeat_batch
from zfdist.model.networks.network import Draw, Network, Pass, Step
from zfdist.model.recurrent.layer_norm import LayerNormRecurrence
from zfdist.model.recurrent.lstm import BackwardLSTM
from zfdist.model.recurrent.recurrence import Recurrence, Unrolled
from zfdist.model.terms import Terms


class ZForcing(Network):
    """The network of Z-Forcing."""

    weight_of: ClassVar[Mapping[str, str]] = {"aux": "alpha", "backward_output": "beta", "label": "label"}
    inference_embedding: ClassVar[str] = "embed_backward"

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the objective, as `Network.forward`; alpha's and beta's are in no bound."""
        e_TBE = self.embed(x_TBX)
        b_TBH = self._read_backwards(y_TBX, lengths_B)
        unrolled = self._unroll(e_TBE, b_TBH, eps_TNZ)
        terms = self._terms(self._found(unrolled, e_TBE, eps_TNZ), y_TBX, lengths_B, eps_TNZ)
        if is_many(lengths_B, eps_TNZ):
            return terms
        return terms._replace(
            log_pb_TB=self._log_pb(unrolled, e_TBE, b_TBH, eps_TNZ),
            log_px_backward_TB=self.backward_output(b_TBH, x_TBX),
        )

    def initial_state(self, batch: int) -> State:
        """Return h_0 = c_0 = 0 for `batch` sequences."""
        return zero_state(batch, self.config.hidden, self.input.weight)

    def _assemble(self, embedded: int) -> None:
        config = self.config
        hidden, z_dim, mlp_dim = config.hidden, config.z_dim, config.mlp_dim
        self.input = WideLinear(embedded, GATES * hidden)
        self.backward_net = BackwardLSTM(embedded, hidden)
        self.posterior_b = WideLinear(hidden, mlp_dim)
        self.posterior_x = WideLinear(embedded, mlp_dim, bias=False) if config.latent_sees_x else None
        self.recurrence: Recurrence | LayerNormRecurrence
        if config.layer_norm_z:
            self.recurrence = LayerNormRecurrence(hidden, z_dim, mlp_dim, config.latent_clamp)
        else:
            self.recurrence = Recurrence(hidden, z_dim, mlp_dim, config.latent_clamp, config.recurrence)
        self.prior = Head(hidden + embedded * config.latent_sees_x, mlp_dim, 2 * z_dim)
        self.aux = Head(z_dim + hidden * config.aux_sees_h, mlp_dim, 2 * hidden)
        self.output = Output(config, hidden + embedded * config.output_skip + z_dim * config.output_sees_z, self.x_dim)
        self.backward_output = Output(config, hidden, self.x_dim)

    def _pass(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Pass:
        e_TBE = self.embed(x_TBX)
        return self._found(self._unroll(e_TBE, self._read_backwards(y_TBX, lengths_B), eps_TNZ), e_TBE, eps_TNZ)

    def _found(self, unrolled: Unrolled, e_TBE: Tensor, eps_TNZ: Tensor) -> Pass:
        e_TNE = repeat_batch(e_TBE, eps_TNZ)
        return Pass(
            self._seen(unrolled.h_TBH, e_TNE, unrolled.z_TBZ),
            lambda: self._prior(self._before(unrolled.h_TBH), e_TNE),
            latent_gaussian(unrolled.mu_TBZ, unrolled.logvar_TBZ),
            unrolled.z_TBZ,
            unrolled.state,
        )

    def _start(self, x_BX: Tensor, like_BZ: Tensor) -> State:
        return self.initial_state(len(like_BZ))

    def _stepping(self, steps: int) -> Step:
        loop_step = self.recurrence.stepping(steps)

        def step(state: State, x_BX: Tensor, draw: Draw) -> tuple[Tensor, State]:
            e_BE = self.embed(x_BX)
            z_BZ = draw.latent(lambda: self._prior(state.h_BH, e_BE))
            after = loop_step(self.input(e_BE), z_BZ, state)
            return draw.observation(self._seen(after.h_BH, e_BE, z_BZ)), after

        return step

    def _read_backwards(self, y_TBX: Tensor, lengths_B: Tensor) -> Tensor:
        """Return b_t of equation (6) for all steps, whatever the number of trajectories: [T, B, H]."""
        b_TBH: Tensor = self.backward_net(self._embed_for_inference(y_TBX), lengths_B)
        return b_TBH

    def _unroll(self, e_TBE: Tensor, b_TBH: Tensor, eps_TNZ: Tensor) -> Unrolled:
        qb_TBM = self.posterior_b(b_TBH)
        if self.posterior_x is not None:
            qb_TBM = qb_TBM + self.posterior_x(e_TBE)
        state = self.initial_state(eps_TNZ.shape[1])
        gx_TNG, qb_TNM = repeat_batch(self.input(e_TBE), eps_TNZ), repeat_batch(qb_TBM, eps_TNZ)
        unrolled: Unrolled = self.recurrence(gx_TNG, qb_TNM, eps_TNZ, state)
        return unrolled

    def _before(self, h_TBH: Tensor) -> Tensor:
        """Return h_{t-1} for all steps."""
        return torch.cat([torch.zeros_like(h_TBH[:1]), h_TBH[:-1]])

    def _seen(self, h_BH: Tensor, e_BE: Tensor, z_BZ: Tensor) -> Tensor:
        """Return what the output net reads: h_t, by the switches also x_t and z_t."""
        extra = [e_BE] * self.config.output_skip + [z_BZ] * self.config.output_sees_z
        return torch.cat([h_BH, *extra], dim=-1) if extra else h_BH

    def _prior(self, h_BH: Tensor, e_BE: Tensor) -> Gaussian:
        seen = torch.cat([h_BH, e_BE], dim=-1) if self.config.latent_sees_x else h_BH
        return clamped_gaussian(self.prior(seen), self.config.latent_clamp)

    def _log_pb(self, unrolled: Unrolled, e_TBE: Tensor, b_TBH: Tensor, eps_TBZ: Tensor) -> Tensor:
        """Return log p(b_t | z_t), b_t a constant."""
        if self.config.aux_stop_gradient == "backward_net":
            # The same numbers again, on a graph that has no way back to the backward net.
            unrolled = self._unroll(e_TBE, b_TBH.detach(), eps_TBZ)
        seen = unrolled.z_TBZ
        if self.config.aux_sees_h:
            seen = torch.cat([seen, self._before(unrolled.h_TBH)], dim=-1)
        return auxiliary_log_prob(self.config, self.aux(seen), b_TBH.detach())
