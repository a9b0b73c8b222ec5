"""Densities of an observation given the state: frames, bits or tokens, in nats.

A density is a NamedTuple of its parameters with `log_prob` and `sample`. Every sample is made of standard normal
noise, which keeps one front door for randomness: where a choice needs a uniform number, it is the normal's CDF.
A further density is one more such class and a case in each of the three functions at the end; one that has weights
of its own, as zfdist.model.autoregressive, brings them as a module, which the output net holds and hands in.

Shapes: ... any leading dimensions (time, batch), D values of an observation, K components, V words.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zfdist.config import ModelConfig
from zfdist.model.autoregressive import CausalNet
from zfdist.model.distributions import HALF_LOG_2PI, Gaussian, floored, latent_gaussian
from zfdist.model.kernels import cpp_gaussian
from zfdist.model.kernels.lstm_cell import clamp_latent
from zfdist.model.kernels.mixed_precision import widen


class Density(Protocol):
    """What the output net gives."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of an observation, summed over its values: [..., D] -> [...]."""
        ...

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return an observation made of normal noise [..., noise_size]; `temperature` 0 gives the likeliest."""
        ...


class Mixture(NamedTuple):
    """K diagonal Gaussians over a whole frame: `log_weights` [..., K], `means` and `log_stds` [..., K, D]."""

    log_weights: Tensor
    means: Tensor
    log_stds: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log sum_k w_k N(value; mean_k, std_k), one weight per component and frame: [..., D] -> [...]."""
        scaled = (widen(value)[..., None, :] - self.means) * torch.exp(-self.log_stds)
        component_logs = -(0.5 * scaled.square() + self.log_stds + HALF_LOG_2PI).sum(-1)
        return torch.logsumexp(self.log_weights + component_logs, dim=-1)

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return a frame from `eps` [..., 1 + D]: its first value chooses the component, the others are its noise.

        `temperature` sharpens the choice and scales the noise; 0 gives the mean of the likeliest component.
        """
        chosen = _choose(self.log_weights, eps[..., 0], temperature)[..., None, None]
        chosen = chosen.expand(*self.means.shape[:-2], 1, self.means.shape[-1])
        mean, log_std = (value.gather(-2, chosen).squeeze(-2) for value in (self.means, self.log_stds))
        return Gaussian(mean, log_std).sample(eps[..., 1:], temperature)


class Bernoulli(NamedTuple):
    """Independent bits from `logits` [..., D]."""

    logits: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of bits (floats 0 or 1) summed over the last dimension: [..., D] -> [...]."""
        wide = widen(value).to(self.logits.dtype)
        return -F.binary_cross_entropy_with_logits(self.logits, wide, reduction="none").sum(-1)

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return bits as floats 0 or 1 from `eps` [..., D]; `temperature` 0 gives the likelier of each."""
        if temperature == 0:
            return (self.logits > 0).to(self.logits.dtype)
        return (_uniform(eps) < torch.sigmoid(self.logits.double() / temperature)).to(self.logits.dtype)


class Categorical(NamedTuple):
    """One of V tokens from `logits` [..., V]."""

    logits: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of tokens (int64): [...] -> [...]."""
        picked = self.logits.gather(-1, value[..., None]).squeeze(-1)
        return picked - torch.logsumexp(self.logits, dim=-1)

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return tokens (int64) [...] from `eps` [..., 1]; `temperature` divides the logits, 0 gives the likeliest."""
        return _choose(self.logits, eps[..., 0], temperature)


def output_size(config: ModelConfig, x_dim: int) -> int:
    """Return how many numbers the output net gives for an observation of `x_dim` values, or of as many words."""
    match config.density:
        case "gaussian":
            return 2 * x_dim
        case "mixture":
            return config.mixture_components * (1 + 2 * x_dim)
        case "autoregressive":
            return 2 * (x_dim + config.causal_units)
        case "bernoulli" | "categorical":
            return x_dim


def noise_size(config: ModelConfig, x_dim: int) -> int:
    """Return how many normal numbers a sample of an observation takes."""
    return {"mixture": 1 + x_dim, "categorical": 1}.get(config.density, x_dim)


def own_weights(config: ModelConfig, x_dim: int) -> CausalNet | None:
    """Return the weights that a density has beside what the output net says, for those that have any."""
    return CausalNet(config, x_dim) if config.density == "autoregressive" else None


def output_density(config: ModelConfig, parameters: Tensor, own: CausalNet | None = None) -> Density:
    """Return the density of an observation from the output net's numbers [..., output_size].

    gaussian: means, then the raw scales r with std = sigma_floor + exp(r). mixture: raw log-weights, then the means
    of all components, then their raw scales. bernoulli, categorical: logits. autoregressive: means, raw scales, gains
    and shifts, and `own_weights`. A Gaussian's density is unbounded on digital silence; the floor bounds it, smoothly,
    so that the gradient never vanishes at an edge.
    """
    parameters = widen(parameters)
    match config.density:
        case "gaussian":
            mean, raw = parameters.chunk(2, dim=-1)
            return Gaussian(mean, floored(raw, config.sigma_floor))
        case "mixture":
            count = config.mixture_components
            x_dim = (parameters.shape[-1] // count - 1) // 2
            logits, means, raws = torch.split(parameters, [count, count * x_dim, count * x_dim], dim=-1)
            means, raws = (value.reshape(*value.shape[:-1], count, x_dim) for value in (means, raws))
            return Mixture(torch.log_softmax(logits, dim=-1), means, floored(raws, config.sigma_floor))
        case "autoregressive":
            if own is None:
                raise ValueError("an autoregressive density is made of its own weights too: own_weights")
            return own.density(parameters)
        case "bernoulli":
            return Bernoulli(parameters)
        case "categorical":
            return Categorical(parameters)


def output_log_prob(config: ModelConfig, parameters: Tensor, value: Tensor, own: CausalNet | None = None) -> Tensor:
    """Return the log-probability of an observation under `output_density`, in one pass where that can be: [...]."""
    parameters = widen(parameters)
    if own is not None:
        log_prob: Tensor = own(parameters, value)
        return log_prob
    if config.density == "gaussian" and cpp_gaussian.is_supported(parameters, value):
        return cpp_gaussian.observation_log_prob(parameters, value, config.sigma_floor)
    return output_density(config, parameters).log_prob(value)


def auxiliary_log_prob(config: ModelConfig, parameters: Tensor, value: Tensor) -> Tensor:
    """Return log p(b_t | z_t) from the auxiliary net's mean and log-variance, each clamped: [..., 2 D] -> [...]."""
    parameters = widen(parameters)
    if cpp_gaussian.is_supported(parameters, value):
        return cpp_gaussian.latent_log_prob(parameters, value, config.latent_clamp, config.aux_tanh)
    mean, log_variance = clamp_latent(parameters, config.latent_clamp).chunk(2, dim=-1)
    return latent_gaussian(torch.tanh(mean) if config.aux_tanh else mean, log_variance).log_prob(value)


def _uniform(eps: Tensor) -> Tensor:
    """Turn standard normals into uniforms in (0, 1); in float64, for in float32 the largest would become 1."""
    uniform: Tensor = torch.special.ndtr(eps.double())
    return uniform


def _choose(logits: Tensor, eps: Tensor, temperature: float) -> Tensor:
    """Return a choice among the last dimension of `logits` by its cumulative distribution: [..., K], [...] -> [...]."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    threshold = _uniform(eps)[..., None] * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).clamp(max=logits.shape[-1] - 1)
