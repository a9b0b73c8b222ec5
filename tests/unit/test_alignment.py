"""Who may read what: the alignment of x, b, z and h, by changing one frame and looking at what moves."""

import pytest
import torch
from small_zforcing import B, T, X, all_parts, changed, data, make, run_with_z, steps_that_changed
from torch.distributions import Normal

from zfdist.config import ModelConfig
from zfdist.model.systems import build


@pytest.mark.parametrize("t", range(1, T + 2))
def test_b_reads_from_the_end_down_to_the_next_frame(t):
    model, (frames, lengths, eps) = make(), data()
    before, after = (all_parts(model, f, lengths, eps)["b"] for f in (frames, changed(frames, t)))
    # b_s has read x_{s+1} .. x_{T+1}: a change of x_t moves b_1 .. b_{t-1} and nothing else.
    assert steps_that_changed(before, after) == set(range(1, t))


def test_the_unrolled_network_is_the_stepwise_one():
    model, (frames, lengths, eps) = make(), data()
    parts = all_parts(model, frames, lengths, eps)
    priors, outputs = run_with_z(model, frames, parts["z"])
    torch.testing.assert_close(priors.chunk(2, dim=-1)[0], parts["prior"])
    torch.testing.assert_close(outputs.chunk(2, dim=-1)[0], parts["output"])


def test_betas_term_predicts_the_frame_before_those_that_b_has_read():
    model, (frames, lengths, eps) = make(), data()
    for t in range(1, T + 2):
        before, after = (model(f[:-1], f[1:], lengths, eps).log_px_backward_TB for f in (frames, changed(frames, t)))
        # x_t is scored at step t and read by b_1 .. b_{t-1}; later steps know nothing of it.
        assert steps_that_changed(before, after) == set(range(1, min(t, T) + 1))


def test_generating_with_the_posteriors_latents_is_reconstruction_fed_back():
    """Generation is the prior path: with prior noise chosen to give the posterior's z, the two halves meet."""
    model, (frames, lengths, eps) = make(), data()
    parts = all_parts(model, frames, lengths, eps)
    zero = torch.zeros(1, B, X, dtype=torch.float64)
    prior = model._prior(model.initial_state(B).h_BH, frames[0])
    eps_z = ((parts["z"][0] - prior.mean) / prior.log_std.exp())[None]
    drawn = model.generate(eps_z, zero, x_BX=frames[0])
    torch.testing.assert_close(drawn.x_TBX[0], parts["output"][0])
    torch.testing.assert_close(drawn.state.h_BH, parts["h"][0])


def test_the_elbo_lies_below_the_exact_likelihood_and_its_weights_average_to_it():
    """Two steps, one latent each: all expectations by quadrature over a grid of noise, on the same network."""
    model = build(ModelConfig(hidden=4, z_dim=1, mlp_dim=6), 2, seed=3).double()
    with torch.no_grad():
        model.recurrence.w_z_GZ.mul_(4.0)  # let the latents matter
        model.recurrence.b_q_Q.copy_(torch.tensor([0.8, 0.5]))  # and the posterior be wrong
    line = torch.linspace(-7.0, 7.0, 141, dtype=torch.float64)
    eps = torch.cartesian_prod(line, line).T[..., None]  # [2, 141 * 141, 1]
    log_noise = Normal(0.0, 1.0).log_prob(eps).sum((0, 2)) + 2 * torch.log(line[1] - line[0])
    frames = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = (f.expand(2, eps.shape[1], 2) for f in (frames[:-1], frames[1:]))

    with torch.no_grad():
        state, log_px = model.initial_state(eps.shape[1]), torch.zeros(eps.shape[1], dtype=torch.float64)
        for t in range(2):
            state = model.recurrence.step(model.input(x[t]), model._prior(state.h_BH, x[t]).sample(eps[t]), state)
            log_px += model.output.density(state.h_BH).log_prob(y[t])
        exact = torch.logsumexp(log_px + log_noise, 0)

        lengths = torch.full((eps.shape[1],), 2)
        terms = model(x, y, lengths, eps)
        elbo = ((terms.log_px_TB - terms.kl_TB).sum(0) * log_noise.exp()).sum()
        log_weight = (terms.log_px_TB + terms.log_ratio_TB).sum(0)
        weights = torch.logsumexp(log_weight + log_noise, 0)
        sampled_elbo = (log_weight * log_noise.exp()).sum()

    assert elbo < exact - 0.05
    assert float(weights) == pytest.approx(float(exact), abs=1e-3)
    assert float(sampled_elbo) == pytest.approx(float(elbo), abs=1e-8)
