"""The importance-weighted bound, perplexity and the legacy denominator, against computations by hand."""

import math
import statistics

import numpy as np
import pytest
import torch
from peak import Peak
from small_systems import SYSTEMS

from zfdist import seeding
from zfdist.config import ModelConfig
from zfdist.data.kinds import BITS, PCM16, TOKENS
from zfdist.data.loader import Batch
from zfdist.evaluation.bounds import COLUMNS, Importance, importance_weighted, score, sums_of
from zfdist.evaluation.results import Question, legacy_rows, ratio_stderr, result_fields
from zfdist.model.systems import build
from zfdist.model.terms import Terms

T, X, Z = 6, 5, 3
LENGTHS = [6, 4, 1, 6, 3]
READERS = {
    "zforcing": "backward_net", "storn": "inference_net", "vrnn": "posterior_y", "srnn": "smoother", "rnn": "lstm",
}  # fmt: skip
"""The part of a network that reads what it has not come to yet, or all that there is."""


@pytest.fixture(scope="module", params=SYSTEMS)
def model(request):
    module = build(ModelConfig(system=request.param, hidden=10, z_dim=Z, mlp_dim=7), X, seed=2).double()
    module.register_forward_pre_hook(lambda _module, given: (*given[:3], given[3].double()))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # so that posterior and prior differ
    return module


def batch(rows=range(5), steps=T):
    frames_TBX = torch.randn(T + 1, len(LENGTHS), X, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lengths_B, rows_B = torch.tensor(LENGTHS), torch.tensor(list(rows))
    chosen = frames_TBX[: steps + 1, rows_B]
    return Batch(
        chosen[:-1], chosen[1:], lengths_B[rows_B], 10 + rows_B, rows_B, len(rows_B), int(lengths_B[rows_B].sum())
    )


def bound(model, given, samples, chunk=5, seed=3):
    with torch.no_grad():
        importance = Importance(samples=samples, chunk=chunk)
        return importance_weighted(model, given, z_dim=Z, seed=seed, importance=importance)


def by_hand(model, row, samples, seed=3):
    """One unpadded sequence, one whole trajectory at a time."""
    n = LENGTHS[row]
    one, logs = batch([row], steps=n), []
    for k in range(samples):
        eps = seeding.normals(seeding.key(seed, "iwae", k), torch.tensor([10 + row]), n, Z)
        with torch.no_grad():
            terms = model(one.x_TBX, one.y_TBX, torch.tensor([n]), eps)
        logs.append(float((terms.log_px_TB + terms.log_ratio_TB).double().sum()))
    largest = max(logs)
    return largest + math.log(statistics.fmean(math.exp(log - largest) for log in logs))


def test_it_is_the_log_mean_weight_of_whole_trajectories(model):
    expected = [by_hand(model, row, 7) for row in range(5)]
    assert bound(model, batch(), 7).tolist() == pytest.approx(expected, rel=1e-9)


def test_one_sample_is_the_elbo_with_sampled_kl(model):
    given = batch()
    eps = seeding.normals(seeding.key(3, "iwae", 0), given.positions_B, T, Z)
    with torch.no_grad():
        terms = model(given.x_TBX, given.y_TBX, given.lengths_B, eps)
    elbo_TB = torch.where(given.mask_TB, terms.log_px_TB + terms.log_ratio_TB, 0.0)
    torch.testing.assert_close(bound(model, given, 1), elbo_TB.sum(0), rtol=1e-12, atol=1e-12)


def test_the_sampled_kl_is_the_analytic_one_in_expectation(model):
    given, count = batch(), 400
    sampled = torch.stack([bound(model, given, 1, seed=seed) for seed in range(count)])
    analytic = column(score(model, [given], z_dim=Z, seeds=range(count)), "elbo_nats").sum(1)
    difference = sampled.sum(1) - analytic
    assert abs(float(difference.mean())) <= 4 * float(difference.std()) / count**0.5 + 1e-9


def test_it_rises_with_k_in_expectation(model):
    means = [
        statistics.fmean(float(bound(model, batch(), k, seed=seed).sum()) for seed in range(40)) for k in (1, 4, 16)
    ]
    if not model.has_latents:
        assert means == pytest.approx([means[0]] * 3), "exact: there is nothing to sample"
    else:
        assert means[0] < means[1] < means[2]


def test_neither_chunk_nor_batch_changes_it(model):
    whole = bound(model, batch(), 7, chunk=7)
    for chunk in (1, 2, 5, 100):
        torch.testing.assert_close(bound(model, batch(), 7, chunk=chunk), whole, rtol=1e-9, atol=1e-9)
    parts = torch.cat([bound(model, batch(rows), 7) for rows in ([0, 1], [2], [3, 4])])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", READERS, indirect=True)
def test_the_future_is_read_once_for_all_trajectories_of_a_chunk(model):
    rows, reader = [], getattr(model, READERS[model.config.system])
    hook = reader.register_forward_hook(lambda _module, given, _out: rows.append(given[0].shape[1]))
    bound(model, batch(), 25, chunk=5)
    hook.remove()
    assert rows == [5] * 5, "five chunks, and the five sequences of the batch in each"


def test_a_dummy_row_gives_nothing(model):
    given = batch()._replace(lengths_B=torch.tensor([6, 0, 1, 6, 3]))
    assert float(bound(model, given, 3)[1]) == pytest.approx(0.0, abs=1e-12)


def peak(model, samples, chunk):
    with Peak() as memory:
        bound(model, batch(), samples, chunk)
    return memory.peak


def test_memory_does_not_grow_with_k(model):
    one_chunk = peak(model, 5, 5)
    assert peak(model, 25, 5) <= 1.2 * one_chunk
    assert peak(model, 100, 100) > 1.5 * one_chunk, "else this measures nothing"


def scored(model, given, seeds=(3,), importance=None):
    return score(model, given, z_dim=Z, seeds=seeds, importance=importance)


def column(scores, name):
    return scores[..., COLUMNS.index(name)]


def test_seeds_are_rows_and_their_mean_and_error_are_reported(model):
    importance = Importance(samples=3, chunk=2)
    scores = scored(model, [batch([0, 1]), batch([2, 3, 4])], seeds=[3, 4, 5], importance=importance)
    alone = [scored(model, [batch()], seeds=[seed], importance=importance)[0] for seed in (3, 4, 5)]
    torch.testing.assert_close(scores, torch.stack(alone), rtol=1e-9, atol=1e-9)
    question = Question(split="test", seeds=[3, 4, 5], importance=importance)
    fields = result_fields(scores, np.arange(5), question, PCM16, X)
    for name in ("elbo_nats", "iwae_nats", "kl_nats"):
        values = column(scores, name).mean(1).tolist()
        assert fields[name] == pytest.approx(statistics.fmean(values))
        assert fields["seed_stderr"][name] == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert (fields["num_seeds"], fields["iwae_samples"], fields["sequences"]) == (3, 3, 5)
    sums = sums_of(scores[0]).tolist()
    assert sums[:2] == [5, sum(LENGTHS)] and sums[2] == pytest.approx(sums[3] - sums[4])


def rows(**columns):
    """Scores of one seed; what is not given is 0, frames are 1."""
    count = len(next(iter(columns.values())))
    defaults = {name: [float(name == "frames")] * count for name in COLUMNS}
    return torch.tensor(list((defaults | columns).values()), dtype=torch.float64).t()[None]


def fields_of(scores, kind, frame_samples=1, groups=None, **question):
    groups = np.arange(scores.shape[1]) if groups is None else groups
    return result_fields(scores, groups, Question(split="test", seeds=[0], **question), kind, frame_samples)


def test_perplexity_by_hand():
    """A bigram model that gives the next of 4 words probability 1/4, and </s> 1/2, has these two sentences right."""
    log_px = [3 * math.log(1 / 4) + math.log(1 / 2), math.log(1 / 4) + math.log(1 / 2)]  # 3 words, 1 word
    importance = Importance(samples=2)
    scores = rows(frames=[4, 2], elbo_nats=log_px, iwae_nats=[log + 0.3 for log in log_px])
    fields = fields_of(scores, TOKENS, importance=importance)
    assert fields["perplexity"] == pytest.approx((4**4 * 2**2) ** (1 / 6))
    assert fields["iwae_perplexity"] == pytest.approx((4**4 * 2**2) ** (1 / 6) * math.exp(-0.1))
    assert fields["perplexity"] == pytest.approx(math.exp(-fields["nats_per_sample"]))
    assert "nll_nats" not in fields


def test_errors_of_means_over_words_are_those_of_sentences_drawn_again():
    """Bootstrap over sentences: what the spread of the ratio would be with other sentences of the same text."""
    rng = np.random.default_rng(0)
    frames = rng.integers(2, 20, 400).astype(float)
    elbos = -4.0 * frames + rng.normal(size=400) * 5 + 0.8 * frames * rng.normal(size=400)
    scores = rows(frames=frames.tolist(), elbo_nats=elbos.tolist())
    fields = fields_of(scores, TOKENS)
    drawn = rng.integers(0, 400, (2000, 400))
    ratios = elbos[drawn].sum(1) / frames[drawn].sum(1)
    assert fields["nats_per_sample_stderr"] == pytest.approx(ratios.std(), rel=0.1)
    assert fields["perplexity_stderr"] == pytest.approx(np.exp(-ratios).std(), rel=0.1)
    assert fields_of(scores, PCM16, 4)["nats_per_sample_stderr"] == pytest.approx(fields["nats_per_sample_stderr"] / 4)
    assert math.isnan(fields_of(rows(elbo_nats=[1.0]), PCM16)["nats_per_sample_stderr"])


def test_errors_over_segments_are_those_of_recordings_drawn_again():
    """Bootstrap over recordings, whose segments are alike: what treats segments as independent says far too little."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    frames = rng.integers(5, 41, len(groups)).astype(float)
    elbos = frames * (10 + rng.normal(size=60)[groups] * 3 + rng.normal(size=len(groups)))
    error = ratio_stderr(elbos, frames, groups)
    drawn = rng.integers(0, 60, (2000, 60))
    sums, lengths = np.bincount(groups, elbos), np.bincount(groups, frames)
    assert error == pytest.approx((sums[drawn].sum(1) / lengths[drawn].sum(1)).std(), rel=0.1)
    assert error > 2 * ratio_stderr(elbos, frames, np.arange(len(groups)))
    fields = fields_of(rows(frames=frames.tolist(), elbo_nats=elbos.tolist()), PCM16, groups=groups)
    assert (fields["groups"], fields["nats_per_sample_stderr"]) == (60, pytest.approx(error))
    assert math.isnan(ratio_stderr(elbos, frames, np.zeros(len(groups), int))), "one recording says nothing of others"


def test_the_error_of_a_mean_is_the_usual_one():
    values = np.array([1.0, 4.0, -2.0, 7.0])
    assert ratio_stderr(values, np.ones(4), np.arange(4)) == pytest.approx(values.std(ddof=1) / 2)


def test_likelihood_of_images_is_in_nats_per_image():
    fields = fields_of(rows(frames=[784.0] * 4, elbo_nats=[-90.0] * 4), BITS)
    assert fields["nll_nats"] == 90.0
    assert "perplexity" not in fields and "iwae_nats" not in fields


@pytest.mark.parametrize(("sequences", "padded"), [(1680, 1696), (1, 32), (31, 32), (32, 64), (64, 96)])
def test_legacy_denominator_by_hand(sequences, padded):
    assert legacy_rows(sequences) == padded
    scores = rows(elbo_nats=[70_469.0 * padded / sequences] * sequences)
    fields = fields_of(scores, PCM16, 200, with_legacy_denominator=True)
    assert fields["legacy_elbo_nats"] == pytest.approx(70_469)
    assert fields["elbo_nats"] == pytest.approx(70_469 * padded / sequences)


def test_accuracy_counts_known_labels_of_real_rows():
    def told(x_TBX, y_TBX, lengths_B, eps_TBZ):
        zeros_TB = torch.zeros(x_TBX.shape[:2])
        logits_BC = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        return Terms(zeros_TB, zeros_TB, zeros_TB, zeros_TB, zeros_TB, logits_BC)

    given = batch()._replace(
        labels_B=torch.tensor([1, 1, -1, 0, 1]), lengths_B=torch.tensor([6, 4, 1, 6, 0]), num_sequences=4
    )
    fields = fields_of(scored(told, [given]), TOKENS)
    assert (fields["labelled"], fields["accuracy"]) == (3, pytest.approx(1 / 3))
    assert "accuracy" not in fields_of(scored(told, [batch()]), TOKENS)
