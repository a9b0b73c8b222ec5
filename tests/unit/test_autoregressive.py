"""The density inside a frame: normalised, causal, sampled as it is scored, and the Gaussian where it hears nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.config import ModelConfig
from zfdist.model.autoregressive import CausalNet
from zfdist.model.densities import noise_size, output_density, output_size
from zfdist.model.distributions import Gaussian

FLOOR = 0.05


def net_of(x_dim, units=4, seed=0):
    config = ModelConfig(density="autoregressive", causal_units=units, sigma_floor=FLOOR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config, CausalNet(config, x_dim).double().requires_grad_(requires_grad=False)


def made(x_dim, shape=(), units=4, seed=0):
    config, net = net_of(x_dim, units, seed)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(*shape, output_size(config, x_dim), generator=generator, dtype=torch.float64)
    return output_density(config, raw, net)


def conditional(density, value):
    """Return mean and standard deviation of each sample given those before it, one sample after another."""
    means, log_stds = [], []
    for s in range(value.shape[-1]):
        heard = sum(value[..., i, None] * density.filters_KR[:, i - s] for i in range(s))
        units = (1 + density.gains) * heard + density.shifts
        units = torch.where(units > 0, units, units / 3).clamp(-3, 3)
        mean, raw = (units @ weights for weights in density.readout_2K)
        means.append(density.means[..., s] + mean)
        log_stds.append(torch.log(FLOOR + torch.exp(density.raws[..., s] + raw)))
    return Gaussian(torch.stack(means, -1), torch.stack(log_stds, -1))


@settings(max_examples=30, deadline=None)
@given(x_dim=st.integers(1, 9), units=st.integers(1, 5), seed=st.integers(0, 2**31), many=st.booleans())
def test_a_frame_is_scored_as_its_samples_one_after_another(x_dim, units, seed, many):
    density = made(x_dim, (2, 3) if many else (), units, seed)
    value = torch.randn(density.means.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(density.log_prob(value), conditional(density, value).log_prob(value))


def test_it_is_normalised():
    """Over a fine grid of frames of two samples, far beyond what is likely."""
    density, step = made(2, (1, 1)), 0.02
    axis = torch.arange(-12, 12, step, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    wide = density._replace(
        **{name: getattr(density, name).expand(*grid.shape[:2], -1) for name in ("means", "raws", "gains", "shifts")}
    )
    total = wide.log_prob(grid).exp().sum() * step**2
    assert total == pytest.approx(1.0, abs=1e-6)


def test_a_sample_depends_on_those_before_it_alone():
    """The noise of a sample moves it and those after it, and none before."""
    density, eps = made(6), torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slopes = torch.autograd.functional.jacobian(density.sample, eps)
    assert ((slopes != 0) == torch.ones(6, 6).tril().bool()).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_what_is_drawn_is_what_is_scored(temperature):
    """The noise of a frame comes back from its score: each sample lies so many deviations from its mean."""
    density = made(8, (3, 2))
    eps = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = density.sample(eps, temperature)
    given_before = conditional(density, drawn)
    torch.testing.assert_close((drawn - given_before.mean) * torch.exp(-given_before.log_std), temperature * eps)
    torch.testing.assert_close(density.log_prob(drawn), given_before.log_prob(drawn))


def test_samples_are_no_frame_of_independent_values():
    """Neighbours agree as the filters say: with one that repeats the sample before, about by its gain."""
    config, net = net_of(5, units=1)
    net.filters[:] = torch.tensor([0.0, 0.0, 0.0, 0.3])
    net.readout[:] = torch.tensor([[2.0], [0.0]])
    raw = torch.zeros(20_000, output_size(config, 5), dtype=torch.float64)
    raw[:, 5:10] = -3.0  # small noise
    raw[:, 0], raw[:, -1] = 0.0, 1.0  # the shift keeps the unit where it is a straight line
    eps = torch.randn(20_000, noise_size(config, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = output_density(config, raw, net).sample(eps)
    slope = torch.cov(drawn[:, 2:4].t())
    assert slope[0, 1] / slope[0, 0] == pytest.approx(0.6, abs=0.03)


def test_without_filters_it_is_the_gaussian():
    config, net = net_of(5)
    net.filters.zero_()
    net.readout.zero_()
    raw = torch.randn(4, output_size(config, 5), dtype=torch.float64)
    value = torch.randn(4, 5, dtype=torch.float64)
    gaussian = output_density(ModelConfig(sigma_floor=FLOOR), raw[:, :10])
    torch.testing.assert_close(output_density(config, raw, net).log_prob(value), gaussian.log_prob(value))


def test_a_loud_frame_does_not_run_away():
    """The units are bounded, so what earlier samples add to a mean is too, whatever they were."""
    density = made(50, (2,))
    far = density.sample(torch.full((2, 50), 1e6, dtype=torch.float64), temperature=1e-5)
    assert torch.isfinite(far).all()
    bound = density.means.abs().max() + 3 * density.readout_2K[0].abs().sum()
    assert (density.sample(torch.zeros(2, 50, dtype=torch.float64)).abs() <= bound).all()


def test_it_needs_its_own_weights():
    config, _ = net_of(3)
    with pytest.raises(ValueError, match="own weights"):
        output_density(config, torch.zeros(output_size(config, 3)))
