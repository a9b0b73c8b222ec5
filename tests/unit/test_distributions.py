"""Densities against torch.distributions and against their definition."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from zfdist.config import ModelConfig
from zfdist.model.densities import output_density
from zfdist.model.distributions import Gaussian, latent_gaussian
from zfdist.model.kernels.mixed_precision import widen


def random_gaussian(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Gaussian(mean, torch.randn(shape, generator=generator, dtype=torch.float64))


def test_log_prob_equals_torch():
    ours, value = random_gaussian(4, 5, 6), random_gaussian(4, 5, 6, seed=1).mean
    theirs = Normal(ours.mean, ours.log_std.exp()).log_prob(value).sum(-1)
    torch.testing.assert_close(ours.log_prob(value), theirs, rtol=1e-13, atol=1e-13)


def test_kl_equals_torch():
    q, p = random_gaussian(4, 5, 6), random_gaussian(4, 5, 6, seed=1)
    theirs = kl_divergence(Normal(q.mean, q.log_std.exp()), Normal(p.mean, p.log_std.exp())).sum(-1)
    torch.testing.assert_close(q.kl(p), theirs, rtol=1e-12, atol=1e-12)
    assert (q.kl(p) > 0).all()
    assert torch.equal(q.kl(q), torch.zeros(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("log_ratio", [7e-4, 1e-3, 1.3e-3, 1.7e-3, 2.1e-3])
def test_kl_of_nearly_equal_gaussians_keeps_its_digits_in_float32(log_ratio):
    p = Gaussian(torch.zeros(1), torch.zeros(1))
    q = Gaussian(torch.zeros(1), torch.full((1,), log_ratio))
    given = float(q.log_std)  # what float32 made of it
    exact = 0.5 * (math.expm1(2 * given) - 2 * given)
    assert abs(float(q.kl(p)) - exact) < 1e-3 * exact


def test_kl_is_the_mean_log_ratio_of_samples():
    q, p = random_gaussian(1, seed=2), random_gaussian(1, seed=3)
    eps = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = q.sample(eps)
    ratios = q.log_prob(sampled) - p.log_prob(sampled)
    assert abs(ratios.mean() - q.kl(p)[..., None].squeeze()) < 4 * ratios.std() / 200_000**0.5


def test_latent_gaussian_speaks_in_log_variances():
    latent = latent_gaussian(torch.zeros(2), torch.tensor([0.0, math.log(9.0)]))
    torch.testing.assert_close(latent.sample(torch.ones(2)), torch.tensor([1.0, 3.0]))


def test_sigma_has_a_smooth_floor():
    floor = 1e-3
    raw = torch.tensor([-200.0, -20.0, math.log(floor), 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    density = output_density(ModelConfig(sigma_floor=floor), torch.cat([torch.zeros(5), raw]))
    torch.testing.assert_close(density.log_std.exp(), floor + raw.exp(), rtol=1e-12, atol=0)
    assert (density.log_std.exp() >= floor).all()
    (gradient,) = torch.autograd.grad(density.log_std.sum(), raw)
    torch.testing.assert_close(gradient, raw.exp() / (floor + raw.exp()))
    # Digital silence, predicted perfectly: bounded by the floor.
    silence = Gaussian(density.mean[:1], density.log_std[:1]).log_prob(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(silence, torch.tensor(-0.5 * math.log(2 * math.pi) - math.log(floor)).double())


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened_and_doubles_kept(narrow):
    parameters = torch.randn(3, 8).to(narrow)
    density = output_density(ModelConfig(), parameters)
    assert density.log_prob(torch.zeros(3, 4, dtype=narrow)).dtype == torch.float32
    assert output_density(ModelConfig(), parameters.double()).log_std.dtype == torch.float64
    assert widen(parameters).dtype == torch.float32
