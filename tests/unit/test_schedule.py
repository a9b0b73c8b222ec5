"""Weights and learning rate as functions of the optimizer step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfdist.config import KLConfig, LossConfig, OptimConfig
from zfdist.schedule import EVALUATION, Weights, kl_weight, learning_rate, weights

STEPS = st.integers(0, 10**7)


def test_the_papers_annealing_reaches_one_after_16000_updates():
    paper = KLConfig()
    assert kl_weight(paper, 0) == 0.2
    assert kl_weight(paper, 1) == pytest.approx(0.2 + 5e-5)
    assert kl_weight(paper, 8_000) == pytest.approx(0.6)
    assert kl_weight(paper, 15_990) < 1.0
    assert kl_weight(paper, 16_001) == kl_weight(paper, 10**7) == 1.0


@given(STEPS)
def test_constant_is_one_whatever_else_is_set(step):
    assert kl_weight(KLConfig(kind="constant", start=0.3, increment=0.01), step) == 1.0


@given(STEPS, st.integers(1, 10_000))
def test_cyclical_is_linear_anew_each_period(step, period):
    cyclical = KLConfig(kind="cyclical", start=0.1, increment=1e-3, period_steps=period)
    linear = KLConfig(kind="linear", start=0.1, increment=1e-3)
    assert kl_weight(cyclical, step) == kl_weight(linear, step % period)


@given(STEPS, st.sampled_from(["constant", "linear", "cyclical"]), st.floats(0, 1), st.floats(0, 1))
def test_the_kl_weight_stays_in_the_unit_interval(step, kind, start, increment):
    assert 0.0 <= kl_weight(KLConfig(kind=kind, start=start, increment=increment), step) <= 1.0


def test_alpha_and_beta_at_once_or_by_a_ramp():
    loss = LossConfig(alpha=0.01, beta=0.5, beta_ramp_steps=100)
    assert weights(loss, 0)[1:3] == (0.01, 0.0)
    assert weights(loss, 50)[1:3] == (0.01, 0.25)
    assert weights(loss, 100)[1:3] == weights(loss, 10**6)[1:3] == (0.01, 0.5)
    ramped = LossConfig(alpha=0.01, alpha_ramp_steps=10)
    assert [weights(ramped, step).alpha for step in (0, 5, 10, 20)] == pytest.approx([0.0, 0.005, 0.01, 0.01])


def test_weights_collects_all_of_them():
    loss = LossConfig(alpha=0.3, beta=0.4, kl=KLConfig(kind="constant", free_nats_per_frame=2.0))
    assert weights(loss, 7) == Weights(kl=1.0, alpha=0.3, beta=0.4, free_nats_per_frame=2.0, label=1.0)


def test_the_reported_bound_is_the_elbo():
    assert Weights(kl=1.0, alpha=0.0, beta=0.0, free_nats_per_frame=0.0) == EVALUATION


def test_learning_rate_warms_up_from_above_zero():
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=4)
    rates = [learning_rate(optim, step) for step in range(6)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    assert learning_rate(OptimConfig(learning_rate=3e-4), 0) == 3e-4
