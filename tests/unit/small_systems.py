"""Small networks of every system and density, their data, and a look at their latents: what the tests of them share."""

from contextlib import contextmanager
from typing import get_args, get_type_hints

import torch

from zfdist.config import ModelConfig
from zfdist.model.networks import network
from zfdist.model.systems import build

SYSTEMS = get_args(get_type_hints(ModelConfig)["system"])
DENSITIES = ("gaussian", "mixture", "autoregressive", "bernoulli", "categorical")
T, B, X, Z = 7, 3, 4, 3
SIZES = {"hidden": 6, "z_dim": Z, "mlp_dim": 5, "mixture_components": 3, "causal_units": 3, "lru_blocks": 2}


def make(system="zforcing", density="gaussian", dtype=torch.float64, seed=0, **options):
    if density == "categorical":
        options = {"embed_dim": 5} | options
    model = build(ModelConfig(system=system, density=density, **(SIZES | options)), X, seed).to(dtype)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "bias" in name or "b_q" in name:
                parameter.normal_(std=0.3)  # a zero would hide a forgotten bias
    return model


def data(density="gaussian", batch=B, steps=T, dtype=torch.float64, seed=1):
    """Return observations x_1 .. x_{T+1}, full lengths and noise; X is the number of words of tokens."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(steps + 1, batch, X, generator=generator, dtype=dtype)
    if density == "bernoulli":
        frames = (frames > 0).to(dtype)
    if density == "categorical":
        frames = torch.randint(X, (steps + 1, batch), generator=generator)
    eps = torch.randn(steps, batch, Z, generator=generator, dtype=dtype)
    return frames, torch.full((batch,), steps), eps


def run(model, frames, lengths, eps):
    return model(frames[:-1], frames[1:], lengths, eps)


@contextmanager
def latents():
    """Catch prior, posterior and z of every forward pass of a network in the list given."""
    caught, original = [], network.latent_terms

    def catching(log_px, prior, posterior, z, **others):
        caught.append((prior, posterior, z))
        return original(log_px, prior, posterior, z, **others)

    network.latent_terms = catching
    try:
        yield caught
    finally:
        network.latent_terms = original


@torch.no_grad()
def noise_that_gives(model, frames, lengths, z_TBZ):
    """Return the noise under which the posterior gives these latents, whatever the frames."""
    eps = torch.zeros_like(z_TBZ)
    with latents() as caught:
        for t in range(len(z_TBZ)):
            run(model, frames, lengths, eps)
            _, posterior, _ = caught[-1]
            eps[t] = (z_TBZ[t] - posterior.mean[t]) * torch.exp(-posterior.log_std[t])
    return eps
