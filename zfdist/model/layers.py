"""The parts that systems are composed of: embeddings, heads on the latents, the output net.

Every parameter is used only inside `forward` of the module that owns it, as ZeRO 3 needs; the one exception is a
generating path, which runs on whole modules.

Shapes: T time, B batch, X values of a frame (tokens have none), E embedding, H hidden, Z latent, D any, V words,
C classes, N = T * B.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.densities import Density, output_density, output_log_prob, output_size, own_weights
from zfdist.model.distributions import Gaussian, latent_gaussian
from zfdist.model.kernels.cross_entropy import token_log_prob
from zfdist.model.kernels.lstm_cell import GATES, clamp_latent, clipped_leaky_relu, no_autocast
from zfdist.model.kernels.mixed_precision import widen


def embedding(config: ModelConfig, x_dim: int) -> nn.Module:
    """Return a table for tokens; for frames and bits a linear map without non-linearity, or none."""
    if config.density == "categorical":
        return nn.Embedding(x_dim, config.embed_dim)
    return nn.Linear(x_dim, config.embed_dim) if config.embed_dim else nn.Identity()


def embedded_size(config: ModelConfig, x_dim: int) -> int:
    """Return the size of an embedded observation."""
    return config.embed_dim or x_dim


class Head(nn.Module):
    """A feed-forward net of `layers` hidden layers; its last product stays wide under autocast.

    Means and log-variances rounded to 16 bits would blur a density by more than its own scale.
    """

    def __init__(self, inputs: int, mlp_dim: int, outputs: int, layers: int = 1) -> None:
        super().__init__()
        self.hidden, width = _hidden_layers(inputs, mlp_dim, layers)
        self.out = nn.Linear(width, outputs)

    def forward(self, value: Tensor) -> Tensor:
        """Return [.., outputs] for [.., inputs]."""
        for layer in self.hidden:
            value = clipped_leaky_relu(layer(value))
        with no_autocast(value):
            result: Tensor = self.out(widen(value))
        return result


class Output(nn.Module):
    """The output net f_o: log-probability or density of an observation given features."""

    def __init__(self, config: ModelConfig, inputs: int, x_dim: int) -> None:
        super().__init__()
        self.config = config
        self.hidden, width = _hidden_layers(inputs, config.mlp_dim, config.output_layers)
        outputs = output_size(config, x_dim)
        self.out = _Softmax(width, outputs) if config.density == "categorical" else nn.Linear(width, outputs)
        self.own = own_weights(config, x_dim)

    def forward(self, features_TBH: Tensor, value_TBX: Tensor) -> Tensor:
        """Return log p(value | features), in nats: [T, B]."""
        activations = self._activations(features_TBH)
        with no_autocast(activations):
            if self.config.density != "categorical":
                return output_log_prob(self.config, self.out(activations), value_TBX, self.own)
            log_prob_TB: Tensor = self.out(activations, value_TBX)
        return log_prob_TB

    def density(self, features_TBH: Tensor) -> Density:
        """Return p(. | features)."""
        activations = self._activations(features_TBH)
        with no_autocast(activations):
            return output_density(self.config, self.out(activations), self.own)

    def _activations(self, value: Tensor) -> Tensor:
        for layer in self.hidden:
            value = clipped_leaky_relu(layer(value))
        return widen(value)


class _Softmax(nn.Module):
    """The last layer of a categorical output: logits, or with targets their log-probabilities, chunk by chunk."""

    def __init__(self, inputs: int, words: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(words, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, value: Tensor, target_TB: Tensor | None = None) -> Tensor:
        if target_TB is None:
            return F.linear(value, self.weight, self.bias)
        log_prob_N = token_log_prob(value.flatten(0, -2), self.weight, self.bias, target_TB.flatten())
        return log_prob_N.view(target_TB.shape)


class LabelHead(nn.Module):
    """Logits of the classes of a sequence from the time-average of its posterior means."""

    def __init__(self, z_dim: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(z_dim, classes)

    def forward(self, mu_TBZ: Tensor, lengths_B: Tensor) -> Tensor:
        """Return [B, C]; only the first `lengths_B` steps of each row count."""
        real_TB = torch.arange(len(mu_TBZ), device=lengths_B.device)[:, None] < lengths_B
        total_BZ = torch.where(real_TB[..., None], mu_TBZ, 0.0).sum(0)
        with no_autocast(total_BZ):
            logits_BC: Tensor = self.out(total_BZ / lengths_B.clamp(min=1)[:, None])
        return logits_BC


def label_head(config: ModelConfig) -> LabelHead | None:
    """Return the head that `config.label_classes` asks for, if it does."""
    return LabelHead(config.z_dim, config.label_classes) if config.label_classes else None


def repeat_batch(value_TBX: Tensor, eps_TNZ: Tensor) -> Tensor:
    """Return what is known of B sequences once for each trajectory: the batch over and over, [T, N, ..].

    N is the number of rows of the noise, a multiple of B; a batch that has as many is returned as it is.
    """
    copies = eps_TNZ.shape[1] // value_TBX.shape[1]
    return value_TBX if copies == 1 else value_TBX.repeat(1, copies, *[1] * (value_TBX.ndim - 2))


def is_many(lengths_B: Tensor, eps_TNZ: Tensor) -> bool:
    """Return whether the noise draws several trajectories of each sequence."""
    return eps_TNZ.shape[1] != len(lengths_B)


def clamped_gaussian(parameters: Tensor, bound: float) -> Gaussian:
    """Return the Gaussian of a latent net's numbers, mean and log-variance, each clamped to [-bound, bound]."""
    return latent_gaussian(*clamp_latent(parameters, bound).chunk(2, dim=-1))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Orthogonal recurrent weights of every nn.LSTM and zero biases, as published; the rest as torch draws it."""
    for name, parameter in module.named_parameters():
        if name.endswith("weight_hh_l0"):
            for gate_HH in parameter.chunk(GATES):
                nn.init.orthogonal_(gate_HH)
        elif "bias" in name:
            nn.init.zeros_(parameter)


def _hidden_layers(inputs: int, mlp_dim: int, layers: int) -> tuple[nn.ModuleList, int]:
    widths = [inputs] + [mlp_dim] * layers
    return nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths)), widths[-1]
