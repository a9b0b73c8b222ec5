"""Z-Forcing: the paper's stochastic recurrent network, equations (4) to (8), with a Gaussian output.

Alignment: inputs are x_1 .. x_T, targets y_t = x_{t+1}. The backward net's state b_t has read y_T .. y_t and nothing
earlier; z_t and x_t give h_t; h_t predicts y_t; b_t predicts x_t; z_t predicts b_t. The network knows no weights
of the objective: it gives every term unreduced, and zfdist.model.objective is where they are masked and weighed.

Shapes: T time, B batch, X frame dimensions, H hidden, Z latent, M hidden units of the nets, G = 4 H gates.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.cell import GATES, State, clamp_latent, clipped_leaky_relu, no_autocast
from zfdist.model.distributions import Gaussian, latent_gaussian, log_ratio, output_density, output_size, widen
from zfdist.model.recurrence import Recurrence, Unrolled
from zfdist.model.terms import Terms
from zfdist.seeding import torch_seed


class Generated(NamedTuple):
    """Frames drawn from the model, and all that is needed to go on from the last of them."""

    x_TBX: Tensor
    state: State


class ZForcing(nn.Module):
    """The network of Z-Forcing over frames of `x_dim` real numbers."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.x_dim = x_dim
        hidden, z_dim, mlp_dim = config.hidden, config.z_dim, config.mlp_dim
        outputs = output_size(config.density, x_dim)
        self.input = nn.Linear(x_dim, GATES * hidden)
        self.backward_net = nn.LSTM(x_dim, hidden)
        self.posterior_b = nn.Linear(hidden, mlp_dim)
        self.recurrence = Recurrence(hidden, z_dim, mlp_dim, config.latent_clamp, config.recurrence)
        self.prior = _Head(hidden, mlp_dim, 2 * z_dim)
        self.aux = _Head(z_dim, mlp_dim, 2 * hidden)
        self.output = _Head(hidden, mlp_dim, outputs, config.output_layers)
        self.backward_output = _Head(hidden, mlp_dim, outputs, config.output_layers)
        self._initialise()

    def forward(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Terms:
        """Return the terms of the objective for inputs x, targets y and noise eps.

        `lengths_B` (int64, 0 .. T) says how many steps of each row are real: each row is read backwards from its own
        end. Steps beyond it get terms as well, which mean nothing. Terms are float32, or float64 in a double model.
        """
        b_TBH = self._read_backwards(y_TBX, lengths_B)
        state = self.initial_state(x_TBX.shape[1])
        gx_TBG = self.input(x_TBX)
        unrolled = self.recurrence(gx_TBG, self.posterior_b(b_TBH), eps_TBZ, state)
        posterior = latent_gaussian(unrolled.mu_TBZ, unrolled.logvar_TBZ)
        prior = self._prior(torch.cat([state.h_BH[None], unrolled.h_TBH[:-1]]))
        if self.config.aux_stop_gradient == "target":
            aux_z_TBZ = unrolled.z_TBZ
        else:
            # The same numbers again, on a graph that has no way back to the backward net.
            aux_z_TBZ = self.recurrence(gx_TBG, self.posterior_b(b_TBH.detach()), eps_TBZ, state).z_TBZ
        return Terms(
            log_px_TB=self._output_density(self.output, unrolled.h_TBH).log_prob(y_TBX),
            kl_TB=posterior.kl(prior),
            log_pb_TB=self._aux(aux_z_TBZ).log_prob(b_TBH.detach()),
            log_px_backward_TB=self._output_density(self.backward_output, b_TBH).log_prob(x_TBX),
            log_ratio_TB=log_ratio(prior, posterior, unrolled.z_TBZ),
        )

    def initial_state(self, batch: int) -> State:
        """Return h_0 = c_0 = 0 for `batch` sequences."""
        zeros_BH = torch.zeros(
            batch, self.config.hidden, dtype=self.input.weight.dtype, device=self.input.weight.device
        )
        return State(zeros_BH, zeros_BH)

    def infer(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Unrolled:
        """Return states and latents under the posterior; `eps_TBZ` = 0 gives the posterior mean at every step."""
        qb_TBM = self.posterior_b(self._read_backwards(y_TBX, lengths_B))
        unrolled: Unrolled = self.recurrence(self.input(x_TBX), qb_TBM, eps_TBZ, self.initial_state(x_TBX.shape[1]))
        return unrolled

    def reconstruct(self, x_TBX: Tensor, y_TBX: Tensor, lengths_B: Tensor, eps_TBZ: Tensor) -> Gaussian:
        """Return p(x_{t+1} | h_t) for all steps, with z from the posterior and the true x_t as input."""
        return self._output_density(self.output, self.infer(x_TBX, y_TBX, lengths_B, eps_TBZ).h_TBH)

    def generate(
        self,
        eps_TBZ: Tensor,
        eps_TBX: Tensor,
        *,
        state: State | None = None,
        x_BX: Tensor | None = None,
    ) -> Generated:
        """Draw T frames x_2 .. x_{T+1} from the model: z from the prior, each frame fed back as the next input.

        The noise says how many steps and sequences; scaled noise is another temperature, and noise 0 the mean. Begins
        at `state` (default h_0 = 0) with the input `x_BX` (default 0, the mean frame). Reads weights outside `forward`:
        for a whole module, not for one that ZeRO-3 has partitioned.
        """
        batch = eps_TBZ.shape[1]
        state = self.initial_state(batch) if state is None else state
        x_BX = eps_TBX.new_zeros(batch, self.x_dim) if x_BX is None else x_BX
        frames = []
        for eps_BZ, eps_BX in zip(eps_TBZ, eps_TBX, strict=True):
            z_BZ = self._prior(state.h_BH).sample(eps_BZ)
            state = self.recurrence.step(self.input(x_BX), z_BZ, state)
            x_BX = self._output_density(self.output, state.h_BH).sample(eps_BX)
            frames.append(x_BX)
        return Generated(torch.stack(frames), state)

    def _read_backwards(self, y_TBX: Tensor, lengths_B: Tensor) -> Tensor:
        """Return b_t of equation (6) for all steps: [T, B, H]."""
        order_N = _reversal(lengths_B, y_TBX.shape[0])
        # In float32 under autocast too: a 16-bit cell state costs accuracy and, in nn.LSTM, time.
        with no_autocast(y_TBX):
            return _permuted(self.backward_net(_permuted(widen(y_TBX), order_N))[0], order_N)

    def _prior(self, h_BH: Tensor) -> Gaussian:
        return latent_gaussian(*clamp_latent(self.prior(h_BH), self.config.latent_clamp).chunk(2, dim=-1))

    def _aux(self, z_TBZ: Tensor) -> Gaussian:
        mean, log_variance = clamp_latent(self.aux(z_TBZ), self.config.latent_clamp).chunk(2, dim=-1)
        return latent_gaussian(torch.tanh(mean) if self.config.aux_tanh else mean, log_variance)

    def _output_density(self, head: nn.Module, h_TBH: Tensor) -> Gaussian:
        return output_density(self.config.density, head(h_TBH), self.config.sigma_floor)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Orthogonal recurrent weights and zero biases, as published; the rest as torch draws it."""
        for name, parameter in self.named_parameters():
            if name == "backward_net.weight_hh_l0":
                for gate_HH in parameter.chunk(GATES):
                    nn.init.orthogonal_(gate_HH)
            elif "bias" in name:
                nn.init.zeros_(parameter)


class _Head(nn.Module):
    """A feed-forward net of `layers` hidden layers; its last product stays wide under autocast.

    Means and log-variances rounded to 16 bits would blur a density by more than its own scale.
    """

    def __init__(self, inputs: int, mlp_dim: int, outputs: int, layers: int = 1) -> None:
        super().__init__()
        widths = [inputs] + [mlp_dim] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], outputs)

    def forward(self, value: Tensor) -> Tensor:
        for layer in self.hidden:
            value = clipped_leaky_relu(layer(value))
        with no_autocast(value):
            result: Tensor = self.out(widen(value))
        return result


class _Permute(torch.autograd.Function):
    """Rows (t, b) in another order that is its own inverse: so the gradient is permuted by the same order."""

    @staticmethod
    def forward(ctx: Any, value_TBD: Tensor, order_N: Tensor) -> Tensor:
        ctx.save_for_backward(order_N)
        return value_TBD.flatten(0, 1).index_select(0, order_N).view_as(value_TBD)

    @staticmethod
    def backward(ctx: Any, grad_TBD: Tensor) -> tuple[Tensor, None]:
        return _permuted(grad_TBD, *ctx.saved_tensors), None


def _permuted(value_TBD: Tensor, order_N: Tensor) -> Tensor:
    permuted: Tensor = _Permute.apply(value_TBD, order_N)  # type: ignore[no-untyped-call]
    return permuted


def _reversal(lengths_B: Tensor, steps: int) -> Tensor:
    """Return the flat order [T * B] that reverses each row within its own length and leaves its padding in place."""
    time_TB = torch.arange(steps, device=lengths_B.device)[:, None]
    source_TB = torch.where(time_TB < lengths_B, lengths_B - 1 - time_TB, time_TB)
    return (source_TB * lengths_B.shape[0] + torch.arange(lengths_B.shape[0], device=lengths_B.device)).flatten()


def build(config: ModelConfig, x_dim: int, seed: int) -> ZForcing:
    """Return the network with initial weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        return ZForcing(config, x_dim)
