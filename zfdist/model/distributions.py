"""Densities of observations and latents: log-probability, KL divergence and sampling, in nats.

A density over a frame is a NamedTuple of its parameters with `log_prob`, `sample` and `mean`; a further density is
one more such class, a line in `output_size` and one in `output_density`. Everything is computed in float32 or
wider, also where the network runs in 16 bits.

Shapes: ... any leading dimensions (time, batch), D the dimensions of the density, which are summed over.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance: `mean` and `log_std`, both [..., D]."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log N(value; mean, std) summed over the last dimension: [..., D] -> [...]."""
        scaled = (widen(value) - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * scaled.square() + self.log_std + _HALF_LOG_2PI).sum(-1)

    def sample(self, eps: Tensor) -> Tensor:
        """Return mean + std * eps, for standard normal `eps` of the same shape."""
        return self.mean + torch.exp(self.log_std) * eps

    def kl(self, other: "Gaussian") -> Tensor:
        """Return KL(self || other) summed over the last dimension, analytically: [..., D] -> [...]."""
        log_ratio = self.log_std - other.log_std
        scaled = (self.mean - other.mean) * torch.exp(-other.log_std)
        # expm1 keeps the digits where the two nearly agree, which is where training begins.
        return 0.5 * (torch.expm1(2.0 * log_ratio) - 2.0 * log_ratio + scaled.square()).sum(-1)


def latent_gaussian(mean: Tensor, log_variance: Tensor) -> Gaussian:
    """Return the Gaussian of a latent net, which speaks in log-variances."""
    return Gaussian(widen(mean), 0.5 * widen(log_variance))


@torch.no_grad()
def log_ratio(prior: Gaussian, posterior: Gaussian, z: Tensor) -> Tensor:
    """Return log p(z) - log q(z), summed over the last dimension, without gradient: [..., D] -> [...]."""
    return prior.log_prob(z) - posterior.log_prob(z)


def output_size(density: Literal["gaussian"], x_dim: int) -> int:
    """Return how many numbers the output net gives for a frame of `x_dim` observations."""
    return {"gaussian": 2 * x_dim}[density]


def output_density(density: Literal["gaussian"], parameters: Tensor, sigma_floor: float) -> Gaussian:
    """Return the density of a frame from the output net's numbers [..., output_size].

    gaussian: means, then the raw scales r with std = sigma_floor + exp(r). A Gaussian's density is unbounded on
    digital silence; the floor bounds it, smoothly, so that the gradient never vanishes at an edge.
    """
    mean, raw = widen(parameters).chunk(2, dim=-1)
    return Gaussian(mean, torch.logaddexp(raw, raw.new_tensor(math.log(sigma_floor))))


def widen(value: Tensor) -> Tensor:
    """Return 16-bit floats as float32, anything wider as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
