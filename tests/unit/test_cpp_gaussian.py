"""The one-pass log-probabilities of Gaussians against the plain ones under autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.config import ModelConfig
from zfdist.model import densities
from zfdist.model.kernels import cpp_gaussian


def plain(function, *arguments):
    """Run a log-probability of zfdist.model.densities the plain way, with autograd's derivatives."""
    before, cpp_gaussian.is_supported = cpp_gaussian.is_supported, lambda *_: False
    try:
        return function(*arguments)
    finally:
        cpp_gaussian.is_supported = before


@pytest.mark.parametrize("function", [densities.output_log_prob, densities.auxiliary_log_prob])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 7), values=st.integers(1, 70), clamp=st.sampled_from([0.0, 0.7, 8.0]), squash=st.booleans(),
    size=st.sampled_from([1e-6, 1.0, 6.0]), floor=st.sampled_from([1e-6, 1e-3, 0.5]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_equals_autograd(function, rows, values, clamp, squash, size, floor, seed):
    config = ModelConfig(latent_clamp=clamp, aux_tanh=squash, sigma_floor=floor)
    generator = torch.Generator().manual_seed(seed)
    numbers = (size * torch.randn(2, rows, 2 * values, generator=generator, dtype=torch.float64)).requires_grad_()
    value, mix = (torch.randn(2, rows, *n, generator=generator, dtype=torch.float64) for n in ((values,), ()))
    both = (function(config, numbers, value), plain(function, config, numbers, value))
    results = [(log_prob, torch.autograd.grad((mix * log_prob).sum(), numbers)[0]) for log_prob in both]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("function", [densities.output_log_prob, densities.auxiliary_log_prob])
def test_float32_is_as_near_to_float64_as_autograd_is(function):
    config = ModelConfig(latent_clamp=2.0)
    numbers, value = torch.randn(50, 400), torch.randn(50, 200)
    wide = numbers.double().requires_grad_()
    exact = plain(function, config, wide, value.double())
    (exact_slope,) = torch.autograd.grad(exact.sum(), wide)
    leaf = numbers.requires_grad_()
    errors = []
    for log_prob in (function(config, leaf, value), plain(function, config, leaf, value)):
        (slope,) = torch.autograd.grad(log_prob.sum(), leaf)
        errors.append(
            [float(((a - b).norm() / b.norm()).detach()) for a, b in ((log_prob, exact), (slope, exact_slope))]
        )
    assert all(ours < max(2 * theirs, 2e-7) for ours, theirs in zip(*errors, strict=True))
    assert "LogProb" in type(function(config, leaf, value).grad_fn).__name__


def test_a_value_with_a_gradient_goes_the_plain_way():
    value = torch.randn(3, 4, requires_grad=True)
    log_prob = densities.output_log_prob(ModelConfig(), torch.zeros(3, 8), value)
    (slope,) = torch.autograd.grad(log_prob.sum(), value)
    assert slope.abs().sum() > 0


def test_nan_and_infinity_reach_the_result():
    numbers = torch.zeros(3, 8)
    numbers[0, 1], numbers[1, 0], numbers[2, 5] = torch.nan, torch.inf, torch.nan
    assert not torch.isfinite(densities.output_log_prob(ModelConfig(), numbers, torch.zeros(3, 4))).any()
