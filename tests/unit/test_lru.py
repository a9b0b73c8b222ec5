"""The linear recurrence: all steps at once are the steps one after another, from any state; what it starts from."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_systems import data, make, run

from zfdist.model.networks.lru import linear_recurrence


def complex_noise(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.complex128)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 70), cut=st.integers(0, 70), size=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_all_steps_at_once_are_one_after_another(steps, cut, size, seed):
    """Also in two parts, the second from the state that the first leaves."""
    generator = torch.Generator().manual_seed(seed)
    lambda_H = torch.polar(torch.full((5,), size, dtype=torch.float64), 6 * torch.rand(5, generator=generator).double())
    drive, state, expected = complex_noise(generator, steps, 3, 5), complex_noise(generator, 3, 5), []
    for drive_BH in drive:
        expected.append(lambda_H * (expected[-1] if expected else state) + drive_BH)
    torch.testing.assert_close(linear_recurrence(lambda_H, drive, state), torch.stack(expected))
    first, second = drive[:cut], drive[cut:]
    parts = [linear_recurrence(lambda_H, first, state)] if len(first) else []
    if len(second):
        parts.append(linear_recurrence(lambda_H, second, parts[0][-1] if parts else state))
    torch.testing.assert_close(torch.cat(parts), torch.stack(expected))


def test_what_comes_later_is_not_even_rounded_into_a_step():
    """Padding may hold anything: a convolution by Fourier transforms would spread it over all steps."""
    lambda_H, drive = torch.tensor([0.9 + 0.1j]), complex_noise(torch.Generator().manual_seed(0), 9, 2, 1)
    spoilt = drive.clone()
    spoilt[5:] = torch.nan
    assert torch.equal(linear_recurrence(lambda_H, spoilt)[:5], linear_recurrence(lambda_H, drive)[:5])


def test_generation_step_by_step_is_the_network_that_was_scored():
    """Every observation drawn without noise is the likeliest of a pass over what was drawn before it."""
    model, (frames, lengths, eps) = make("lru"), data()
    drawn = model.generate(eps, torch.zeros(len(eps), 3, model.noise_dim).double(), x_BX=frames[0]).x_TBX
    x = torch.cat([frames[:1], drawn])
    torch.testing.assert_close(model.reconstruct(x[:-1], x[1:], lengths, eps).mean, drawn, rtol=1e-12, atol=1e-12)


def test_states_keep_the_size_of_what_they_read():
    """At the start, from white noise: so blocks can stand one after another, whatever their memory."""
    model = make("lru", hidden=64, lru_blocks=1)
    block, generator = model.blocks[0], torch.Generator().manual_seed(0)
    size = torch.exp(-block.log_nu.exp())
    assert (size > 0.5).all() and (size < 0.99).all()
    white = torch.randn(4000, 1, 64, generator=generator, dtype=torch.complex128)
    lambda_H = torch.polar(size, block.log_theta.exp())
    states = linear_recurrence(lambda_H, block.log_gamma.exp() * white)[500:]
    torch.testing.assert_close(
        states.abs().square().mean().sqrt(), white.abs().square().mean().sqrt(), rtol=0.05, atol=0
    )


def test_gradients_of_the_recurrence():
    generator = torch.Generator().manual_seed(0)
    lambda_H = torch.polar(torch.tensor([0.9, 0.5]).double(), torch.tensor([0.3, 2.0]).double())
    given = (lambda_H, complex_noise(generator, 5, 3, 2), complex_noise(generator, 3, 2))
    assert torch.autograd.gradcheck(linear_recurrence, [value.requires_grad_() for value in given])


def test_memory_is_learnt():
    model, (frames, lengths, eps) = make("lru"), data()
    run(model, frames, lengths, eps).log_px_TB.sum().backward()
    for block in model.blocks:
        assert all(p.grad.abs().max() > 0 for p in (block.log_nu, block.log_theta, block.log_gamma, block.skip))
