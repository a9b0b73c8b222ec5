"""Gaussians: log-probability, KL divergence and sampling, in nats. The latents' density, and the plainest of frames.

Everything is computed in float32 or wider, also where the network runs in 16 bits.

Shapes: ... any leading dimensions (time, batch), D the dimensions of the density, which are summed over.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.mixed_precision import widen

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance: `mean` and `log_std`, both [..., D]."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log N(value; mean, std) summed over the last dimension: [..., D] -> [...]."""
        scaled = (widen(value) - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * scaled.square() + self.log_std + HALF_LOG_2PI).sum(-1)

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return mean + temperature * std * eps, for standard normal `eps` of the same shape; 0 gives the mean."""
        return self.mean + torch.exp(self.log_std) * (eps if temperature == 1.0 else temperature * eps)

    def kl(self, other: "Gaussian") -> Tensor:
        """Return KL(self || other) summed over the last dimension, analytically: [..., D] -> [...]."""
        log_ratio = self.log_std - other.log_std
        scaled = (self.mean - other.mean) * torch.exp(-other.log_std)
        # expm1 keeps the digits where the two nearly agree, which is where training begins.
        return 0.5 * (torch.expm1(2.0 * log_ratio) - 2.0 * log_ratio + scaled.square()).sum(-1)


def floored(raw: Tensor, sigma_floor: float) -> Tensor:
    """Return log(sigma_floor + exp(raw)): the logarithm of an observation's standard deviation."""
    # Filled on the device: a tensor made of a Python number would be copied there, and the processor would wait.
    return torch.logaddexp(raw, torch.full((), math.log(sigma_floor), dtype=raw.dtype, device=raw.device))


def latent_gaussian(mean: Tensor, log_variance: Tensor) -> Gaussian:
    """Return the Gaussian of a latent net, which speaks in log-variances."""
    return Gaussian(widen(mean), 0.5 * widen(log_variance))


def standard_gaussian(like: Tensor) -> Gaussian:
    """Return N(0, I) of the shape of `like`."""
    zeros = torch.zeros_like(like)
    return Gaussian(zeros, zeros)


@torch.no_grad()
def log_ratio(prior: Gaussian, posterior: Gaussian, z: Tensor) -> Tensor:
    """Return log p(z) - log q(z), summed over the last dimension, without gradient: [..., D] -> [...]."""
    return prior.log_prob(z) - posterior.log_prob(z)
