"""Densities of observations: against torch.distributions, and samples against the density they are drawn from."""

import pytest
import torch
from small_systems import DENSITIES
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from zfdist.config import ModelConfig
from zfdist.model.densities import noise_size, output_density, output_size, own_weights

FLOOR = 0.05


def config(density, **options):
    return ModelConfig(density=density, mixture_components=4, embed_dim=2, sigma_floor=FLOOR, **options)


def parameters(density, x_dim, shape=(5, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, output_size(config(density), x_dim), generator=generator, dtype=dtype)


def made_of(density, raw, x_dim):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = own_weights(config(density), x_dim)
    return output_density(config(density), raw, own if own is None else own.to(raw.dtype))


def test_mixture_log_prob_equals_torch():
    raw = parameters("mixture", 3)
    value = torch.randn(5, 6, 3, dtype=torch.float64)
    weights, means, scales = raw[..., :4], raw[..., 4:16].view(5, 6, 4, 3), raw[..., 16:].view(5, 6, 4, 3)
    components = Independent(Normal(means, FLOOR + scales.exp()), 1)
    theirs = MixtureSameFamily(Categorical(logits=weights), components).log_prob(value)
    torch.testing.assert_close(output_density(config("mixture"), raw).log_prob(value), theirs)


def test_bernoulli_log_prob_equals_torch_and_is_exact_far_out():
    raw = parameters("bernoulli", 3)
    value = (torch.randn(5, 6, 3) > 0).double()
    theirs = Bernoulli(logits=raw).log_prob(value).sum(-1)
    torch.testing.assert_close(output_density(config("bernoulli"), raw).log_prob(value), theirs)
    far = output_density(config("bernoulli"), torch.tensor([[200.0], [-200.0]]))
    assert far.log_prob(torch.ones(2, 1)).tolist() == [0.0, -200.0]


def test_categorical_log_prob_equals_torch():
    raw = parameters("categorical", 7)
    value = torch.randint(7, (5, 6))
    theirs = Categorical(logits=raw).log_prob(value)
    torch.testing.assert_close(output_density(config("categorical"), raw).log_prob(value), theirs)


@pytest.mark.parametrize("density", DENSITIES)
def test_sixteen_bit_parameters_are_judged_in_thirty_two(density):
    raw, own = parameters(density, 3).bfloat16(), own_weights(config(density), 3)
    made = output_density(config(density), raw, own)
    value = torch.ones(5, 6, dtype=torch.int64) if density == "categorical" else torch.ones(5, 6, 3)
    assert made.log_prob(value).dtype == torch.float32


@pytest.mark.parametrize("density", [d for d in DENSITIES if d != "autoregressive"])  # which has a file of its own
def test_samples_have_the_moments_of_their_density(density):
    """At temperature 1, for one set of parameters and many draws; each bound is four standard errors."""
    many, x_dim = 40_000, 3
    made = output_density(config(density), parameters(density, x_dim, shape=(1,)))
    eps = torch.randn(many, noise_size(config(density), x_dim), generator=torch.Generator().manual_seed(1)).double()
    drawn = type(made)(*(value.expand(many, *value.shape[1:]) for value in made)).sample(eps)
    if density == "categorical":
        drawn = torch.nn.functional.one_hot(drawn, x_dim).double()
        expected = torch.softmax(made.logits[0], -1)
    elif density == "bernoulli":
        expected = torch.sigmoid(made.logits[0])
    elif density == "mixture":
        expected = (made.log_weights.exp()[..., None] * made.means).sum(-2)[0]
        second = (made.log_weights.exp()[..., None] * (made.means**2 + (2 * made.log_stds).exp())).sum(-2)[0]
        squares = drawn.square()
        assert ((squares.mean(0) - second).abs() < 4 * squares.std(0) / many**0.5).all()
    else:
        expected = made.mean[0]
        torch.testing.assert_close(drawn.std(0), made.log_std[0].exp(), rtol=0.03, atol=0)
    assert ((drawn.mean(0) - expected).abs() < 4 * drawn.std(0) / many**0.5 + 1e-12).all()


@pytest.mark.parametrize("density", DENSITIES)
def test_temperature_zero_is_the_likeliest_and_takes_no_noise(density):
    x_dim = 3
    made = made_of(density, parameters(density, x_dim), x_dim)
    noise = torch.randn(2, 5, 6, noise_size(config(density), x_dim), dtype=torch.float64)
    greedy, again = (made.sample(n, temperature=0.0) for n in noise)
    assert torch.equal(greedy, again)
    for other in (made.sample(n) for n in noise):
        if density not in (
            "mixture",
            "autoregressive",
        ):  # the likeliest first choice need not lead to the highest point
            assert (made.log_prob(greedy) >= made.log_prob(other)).all()
    near = made.sample(noise[0], temperature=1e-9)
    torch.testing.assert_close(near, greedy, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits_of_tokens(temperature):
    made = output_density(config("categorical"), torch.tensor([0.0, 1.0, -1.0]).expand(40_000, 3))
    eps = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(1))
    shares = torch.bincount(made.sample(eps, temperature), minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.softmax(made.logits[0] / temperature, -1), atol=0.012, rtol=0)


def test_the_largest_noise_still_makes_a_choice():
    logits = torch.zeros(3, 5)
    logits[:, 3:] = -torch.inf
    made = output_density(config("categorical"), logits)
    assert made.sample(torch.tensor([[-6.7], [0.0], [6.7]])).tolist() == [0, 1, 2]
