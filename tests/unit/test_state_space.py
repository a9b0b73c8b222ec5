"""Bounds against an exact likelihood: SRNN with the weights of a linear-Gaussian model, which Kalman's filter solves.

    z_t = A z_{t-1} + N(0, Q), z_0 = 0            x_{t+1} = C z_t + N(0, R)

The prior net's one hidden layer is kept within the linear part of its activation by a large bias and small weights,
so that the network is this model exactly. Its posterior may be anything; its mean is left as it was drawn, and its
variance the prior's, so that no weight is far above the others.
"""

import math

import pytest
import torch
from small_systems import make
from torch.distributions import MultivariateNormal

STEPS, Z, X = 3, 2, 4
A = torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.5], [0.2, -0.9], [0.4, 0.4], [-0.7, 0.1]], dtype=torch.float64)
Q, R = 0.5, 0.6  # variances
SMALL, BIAS = 1e-2, 1.0


@pytest.fixture(scope="module")
def model():
    model = make("srnn", z_dim=Z, mlp_dim=Z, output_layers=0, latent_clamp=0.0, hidden=3)
    with torch.no_grad():
        (w_z, _), (prior, posterior) = model.chain.w_z_PZ.chunk(2), model.chain.w_q_2QM
        b_prior, b_posterior = model.chain.b_q_2Q
        for parameter in (model.prior_d.weight, model.output.out.weight, model.output.out.bias, prior):
            parameter.zero_()
        model.prior_d.bias.fill_(BIAS)
        w_z.copy_(SMALL * torch.eye(Z))  # hidden units BIAS + SMALL z: linear for |z| < 100
        prior[:Z] = A / SMALL
        b_prior.copy_(torch.cat([-(A / SMALL).sum(1) * BIAS, torch.full((Z,), math.log(Q)).double()]))
        posterior[Z:] = 0.0
        b_posterior[Z:] = math.log(Q)
        model.output.out.weight[:X, 3:] = C
        model.output.out.bias[X:] = math.log(math.sqrt(R) - model.config.sigma_floor)
    return model


def kalman_log_likelihood(x_TX):
    """The filter: predict, score the innovation, correct."""
    mean, covariance, total = torch.zeros(Z).double(), torch.zeros(Z, Z).double(), 0.0
    for x in x_TX:
        mean, covariance = A @ mean, A @ covariance @ A.T + Q * torch.eye(Z)
        innovation = MultivariateNormal(C @ mean, C @ covariance @ C.T + R * torch.eye(X))
        total += float(innovation.log_prob(x))
        gain = covariance @ C.T @ innovation.precision_matrix
        mean, covariance = mean + gain @ (x - C @ mean), covariance - gain @ C @ covariance
    return total


def test_elbo_iwae_and_likelihood_stand_in_their_order(model):
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(STEPS, 1, X, generator=generator, dtype=torch.float64)
    x = torch.cat([torch.zeros(1, 1, X).double(), y[:-1]])
    exact = kalman_log_likelihood(y[:, 0])
    many = 2**17
    eps = torch.randn(STEPS, many, Z, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        terms = model(x.expand(-1, many, -1), y.expand(-1, many, -1), torch.full((many,), STEPS), eps)
    elbo_B = (terms.log_px_TB - terms.kl_TB).sum(0)
    log_w_B = (terms.log_px_TB + terms.log_ratio_TB).sum(0)
    bounds = {k: torch.logsumexp(log_w_B.view(-1, k), 1) - math.log(k) for k in (1, 2, 8, 64, 1024, many)}
    means = [float(bound.mean()) for bound in bounds.values()]
    error = 4 * float(log_w_B.std() + elbo_B.std()) / many**0.5
    assert means[0] == pytest.approx(float(elbo_B.mean()), abs=error)
    assert means == sorted(means)
    assert means[0] < exact - 0.5
    assert all(mean < exact for mean in means[:4])
    relative = torch.exp(log_w_B - log_w_B.max())
    standard_error = float(relative.std() / relative.mean()) / many**0.5
    assert standard_error < 0.02
    assert means[-1] == pytest.approx(exact, abs=4 * standard_error)


def test_the_networks_prior_is_the_model(model):
    """Drawn from the network itself, observations have the mean square that the model gives."""
    many = 40_000
    eps = torch.randn(STEPS, many, Z, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(STEPS, many, X, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        drawn = model.generate(eps, noise).x_TBX[-1]
    covariance = torch.zeros(Z, Z).double()
    for _ in range(STEPS):
        covariance = A @ covariance @ A.T + Q * torch.eye(Z)
    expected = C @ covariance @ C.T + R * torch.eye(X)
    torch.testing.assert_close(drawn.T @ drawn / many, expected, rtol=0, atol=0.05)
