"""Z-Forcing: the paper's stochastic recurrent network, equations (4) to (8).

Alignment: inputs are x_1 .. x_T, targets y_t = x_{t+1}. The backward net's state b_t has read y_T .. y_t and nothing
earlier; z_t and x_t give h_t; h_t predicts y_t; b_t predicts x_t; z_t predicts b_t. The network knows no weights
of the objective: it gives every term unreduced, and zfdist.model.objective is where they are masked and weighed.

Five switches are in its authors' code and not in the paper: aux_sees_h, latent_sees_x, output_skip, output_sees_z,
layer_norm_z.

Shapes: T time, B batch, X values of a frame (tokens have none), E embedded observation, H hidden, Z latent, M hidden
units of the nets, G = 4 H gates; N noise of an observation, or in place of B the rows of noise, K * B.
"""

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density, auxiliary_log_prob
from zfdist.model.distributions import Gaussian, latent_gaussian
from zfdist.model.kernels.lstm_cell import GATES, State, zero_state
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
from zfdist.model.recurrent.layer_norm import LayerNormRecurrence
from zfdist.model.recurrent.lstm import BackwardLSTM
from zfdist.model.recurrent.recurrence import Recurrence, Unrolled
from zfdist.model.terms import Generated, Inferred, Terms, latent_terms


class ZForcing(nn.Module):
    """The network of Z-Forcing over frames of `x_dim` values, or over `x_dim` words."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        hidden, z_dim, mlp_dim = config.hidden, config.z_dim, config.mlp_dim
        embedded = embedded_size(config, x_dim)
        self.embed = embedding(config, x_dim)
        self.embed_backward = inference_embedding(config, x_dim)
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
        self.output = Output(config, hidden + embedded * config.output_skip + z_dim * config.output_sees_z, x_dim)
        self.backward_output = Output(config, hidden, x_dim)
        self.label = label_head(config)
        initialise(self)

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TNZ: Tensor) -> Terms:
        """Return the terms of the objective for inputs x, targets y and noise eps.

        `lengths_B` (int64, 0 .. T) says how many steps of each row are real: each row is read backwards from its own
        end. Steps beyond it get terms as well, which mean nothing. Terms are float32, or float64 in a double model.

        Noise for K * B rows draws K trajectories of each sequence, the whole batch K times over, and terms are of as
        many rows; b_t is computed once. They are for bounds: alpha's, beta's and the label's terms are left out.
        """
        e_TBE = self.embed(x_TBX)
        b_TBH = self._read_backwards(y_TBX, lengths_B)
        unrolled = self._unroll(e_TBE, b_TBH, eps_TNZ)
        e_TNE = repeat_batch(e_TBE, eps_TNZ)
        terms = latent_terms(
            self.output(self._features(unrolled, e_TNE), repeat_batch(y_TBX, eps_TNZ)),
            self._prior(self._before(unrolled.h_TBH), e_TNE),
            latent_gaussian(unrolled.mu_TBZ, unrolled.logvar_TBZ),
            unrolled.z_TBZ,
        )
        if eps_TNZ.shape[1] != len(lengths_B):
            return terms
        return terms._replace(
            log_pb_TB=self._log_pb(unrolled, e_TBE, b_TBH, eps_TNZ),
            log_px_backward_TB=self.backward_output(b_TBH, x_TBX),
            label_logits_BC=None if self.label is None else self.label(unrolled.mu_TBZ, lengths_B),
        )

    def initial_state(self, batch: int) -> State:
        """Return h_0 = c_0 = 0 for `batch` sequences."""
        return zero_state(batch, self.config.hidden, self.input.weight)

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Inferred:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        e_TBE = self.embed(x_TBX)
        unrolled = self._unroll(e_TBE, self._read_backwards(y_TBX, lengths_B), eps_TBZ)
        features_TBH = self._features(unrolled, e_TBE)
        return Inferred(unrolled.z_TBZ, unrolled.mu_TBZ, features_TBH, unrolled.state)

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
        """Draw T observations x_2 .. x_{T+1}: z from the prior, each observation fed back as the next input.

        The noise says how many steps and sequences; `eps_TBZ` scaled is another temperature of the latents, and
        `temperature` that of the observations, 0 for the likeliest. With `z_TBZ` the latents are given instead of
        drawn. Begins at `state` (default h_0 = 0) with the input `x_BX` (default the mean frame or bits of 0; tokens
        have none). Reads weights outside `forward`: for a whole module, not for one that ZeRO 3 has partitioned.
        """
        state = self.initial_state(eps_TBN.shape[1]) if state is None else state
        x_BX = first_input(self.config, self.x_dim, eps_TBN) if x_BX is None else x_BX
        drawn, step = [], self.recurrence.stepping(len(eps_TBN))
        for t, eps_BN in enumerate(eps_TBN):
            e_BE = self.embed(x_BX)
            z_BZ = self._prior(state.h_BH, e_BE).sample(eps_TBZ[t]) if z_TBZ is None else z_TBZ[t]
            state = step(self.input(e_BE), z_BZ, state)
            x_BX = self.output.density(self._seen(state.h_BH, e_BE, z_BZ)).sample(eps_BN, temperature)
            drawn.append(x_BX)
        return Generated(torch.stack(drawn), state)

    def _read_backwards(self, y_TBX: Tensor, lengths_B: Tensor) -> Tensor:
        """Return b_t of equation (6) for all steps: [T, B, H]."""
        embed = self.embed if self.embed_backward is None else self.embed_backward
        b_TBH: Tensor = self.backward_net(embed(y_TBX), lengths_B)
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

    def _features(self, unrolled: Unrolled, e_TBE: Tensor) -> Tensor:
        return self._seen(unrolled.h_TBH, e_TBE, unrolled.z_TBZ)

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
