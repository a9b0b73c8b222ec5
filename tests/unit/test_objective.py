"""Where terms, mask and weights meet."""

import pytest
import torch

from zfdist.model.objective import LABEL_SUMS, SUMS, objective
from zfdist.model.terms import Terms
from zfdist.schedule import EVALUATION, Weights

LENGTHS = torch.tensor([5, 3, 0])
MASK = torch.arange(5)[:, None] < LENGTHS


def random_terms(seed=0):
    generator = torch.Generator().manual_seed(seed)
    px, kl, pb, back, ratio = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(5))
    return Terms(px, kl.abs(), pb, back, ratio)


def by_hand(terms, weights):
    total = 0.0
    for row, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            px, kl, pb, back = (float(term[t, row]) for term in terms[:4])
            kl = max(kl, weights.free_nats_per_frame)
            total += px + weights.alpha * pb + weights.beta * back - weights.kl * kl
    return total


@pytest.mark.parametrize(
    "weights", [EVALUATION, Weights(0.2, 0.0, 0.0, 0.0), Weights(0.7, 0.3, 2.0, 0.0), Weights(1.0, 0.1, 0.5, 0.8)]
)
def test_equation_10(weights):
    terms = random_terms()
    loss = objective(terms, MASK, weights, num_sequences=7)
    assert float(loss.total) == pytest.approx(-by_hand(terms, weights) / 7, rel=1e-12)
    assert float(loss.sums["objective_nats"]) == pytest.approx(by_hand(terms, weights), rel=1e-12)


def test_the_reported_bound_knows_no_weights():
    terms = random_terms()
    heavy = objective(terms, MASK, Weights(0.1, 9.0, 9.0, 50.0), 2)
    plain = objective(terms, MASK, EVALUATION, 2)
    assert tuple(heavy.sums) == SUMS
    assert float(heavy.sums["elbo_nats"]) == float(plain.sums["elbo_nats"]) == pytest.approx(-2 * float(plain.total))
    assert torch.equal(heavy.elbo_B, plain.elbo_B)
    assert float(plain.sums["elbo_nats"]) == pytest.approx(
        float(plain.sums["log_px_nats"] - plain.sums["kl_nats"]), rel=1e-14
    )
    torch.testing.assert_close(plain.elbo_B, ((terms.log_px_TB - terms.kl_TB) * MASK).sum(0))
    assert plain.elbo_B[2] == 0


def test_padding_never_leaks_not_even_nan():
    terms = random_terms()
    spoilt = Terms(*(torch.where(MASK, term, float("nan")) for term in terms[:5]))
    clean, dirty = (objective(t, MASK, Weights(0.5, 0.1, 0.2, 0.3), 2) for t in (terms, spoilt))
    assert torch.equal(clean.total, dirty.total)
    assert all(torch.equal(clean.sums[name], dirty.sums[name]) for name in SUMS)


def test_padding_has_no_gradient():
    leaves = [term.requires_grad_() for term in random_terms()[:5]]
    objective(Terms(*leaves), MASK, Weights(0.5, 0.1, 0.2, 0.3), 2).total.backward()
    for leaf, weight in zip(leaves, (-1.0, 0.5, -0.1, -0.2), strict=False):
        assert (leaf.grad[~MASK] == 0).all()
        if weight != 0.5:
            assert (leaf.grad[MASK] == weight / 2).all()


def test_free_nats_stop_the_gradient_below_the_floor_only():
    terms = random_terms()
    kl_TB = terms.kl_TB.requires_grad_()
    objective(terms, MASK, Weights(1.0, 0.0, 0.0, 0.8), 1).total.backward()
    assert torch.equal(kl_TB.grad, torch.where(MASK & (kl_TB > 0.8), 1.0, 0.0).double())


def test_parts_of_a_batch_add_up():
    terms, weights = random_terms(), Weights(0.5, 0.1, 0.2, 0.3)
    whole = objective(terms, MASK, weights, 2)
    parts = [
        objective(Terms(*(t[:, r] for t in terms[:5])), MASK[:, r], weights, 2) for r in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    torch.testing.assert_close(parts[0].sums["elbo_nats"] + parts[1].sums["elbo_nats"], whole.sums["elbo_nats"])


def test_a_weight_of_zero_leaves_a_zero_gradient_in_the_graph():
    leaves = [term.requires_grad_() for term in random_terms()[:5]]
    objective(Terms(*leaves), MASK, EVALUATION, 2).total.backward()
    assert torch.equal(leaves[2].grad, torch.zeros(5, 3).double())
    assert torch.equal(leaves[3].grad, torch.zeros(5, 3).double())


def test_sums_are_detached_and_double():
    terms = Terms(*(term.float().requires_grad_() for term in random_terms()[:5]))
    loss = objective(terms, MASK, EVALUATION, 2)
    assert loss.total.requires_grad
    assert loss.total.dtype == torch.float32
    for value in (*loss.sums.values(), loss.elbo_B):
        assert value.dtype == torch.float64
        assert not value.requires_grad


def test_a_label_head_adds_its_log_probability_of_the_labels_that_are_known():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    terms, labels = random_terms()._replace(label_logits_BC=logits), torch.tensor([2, -1, 1])  # row 2 is a dummy
    plain = objective(random_terms(), MASK, EVALUATION, 7)
    loss = objective(terms, MASK, EVALUATION._replace(label=0.3), 7, labels)
    log_label = torch.log_softmax(logits, -1)[0, 2]
    torch.testing.assert_close(loss.total, plain.total - 0.3 * log_label / 7)
    assert tuple(loss.sums) == (*SUMS, *LABEL_SUMS)
    assert float(loss.sums["log_label_nats"]) == pytest.approx(log_label.item())
    assert float(loss.sums["labels_known"]) == 1
    assert float(loss.sums["labels_correct"]) == float(logits[0].argmax() == 2)
    assert float(loss.sums["objective_nats"]) == pytest.approx(-7 * loss.total.item())
    assert torch.equal(loss.sums["elbo_nats"], plain.sums["elbo_nats"])
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert (gradient[0] != 0).all()
    assert (gradient[1:] == 0).all()


def test_without_labels_a_label_head_gets_a_zero_gradient_even_from_nan():
    logits = torch.full((3, 4), torch.nan, requires_grad=True)
    loss = objective(random_terms()._replace(label_logits_BC=logits), MASK, EVALUATION._replace(label=1.0), 2)
    assert torch.equal(loss.total, objective(random_terms(), MASK, EVALUATION, 2).total)
    loss.total.backward()
    assert torch.equal(logits.grad, torch.zeros(3, 4))
    assert float(loss.sums["labels_known"]) == 0
