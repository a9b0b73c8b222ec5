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
from zfdist.evaluation.bounds import Importance, Sums, add_up, importance_weighted
from zfdist.evaluation.results import Question, legacy_rows, result_fields
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
    sums = add_up(model, [given], z_dim=Z, seeds=range(count))
    analytic = sums[:, Sums._fields.index("elbo")]
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
    assert peak(model, 25, 25) > 1.5 * one_chunk, "else this measures nothing"


def sums_of(model, given, seeds=(3,), importance=None):
    return add_up(model, given, z_dim=Z, seeds=seeds, importance=importance)


def test_seeds_are_rows_and_their_mean_and_error_are_reported(model):
    importance = Importance(samples=3, chunk=2)
    sums = sums_of(model, [batch([0, 1]), batch([2, 3, 4])], seeds=[3, 4, 5], importance=importance)
    alone = [sums_of(model, [batch()], seeds=[seed], importance=importance)[0] for seed in (3, 4, 5)]
    torch.testing.assert_close(sums, torch.stack(alone), rtol=1e-9, atol=1e-9)
    question = Question(split="test", seeds=[3, 4, 5], importance=importance)
    fields = result_fields(sums, question, PCM16, X)
    for name, column in (("elbo_nats", "elbo"), ("iwae_nats", "iwae"), ("kl_nats", "kl")):
        values = [float(row[Sums._fields.index(column)]) / 5 for row in sums]
        assert fields[name] == pytest.approx(statistics.fmean(values))
        assert fields["seed_stderr"][name] == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert (fields["num_seeds"], fields["iwae_samples"], fields["sequences"]) == (3, 3, 5)


def row(**values):
    defaults = dict.fromkeys(Sums._fields, 0.0) | {"sequences": 1.0, "frames": 1.0}
    return torch.tensor([list((defaults | values).values())], dtype=torch.float64)


def test_perplexity_by_hand():
    """A bigram model that gives the next of 4 words probability 1/4, and </s> 1/2, has these two sentences right."""
    log_px = [3 * math.log(1 / 4) + math.log(1 / 2), math.log(1 / 4) + math.log(1 / 2)]  # 3 words, 1 word
    importance = Importance(samples=2)
    sums = row(sequences=2.0, frames=4.0 + 2.0, elbo=sum(log_px), iwae=sum(log_px) + 0.6)
    fields = result_fields(sums, Question(split="test", seeds=[0], importance=importance), TOKENS, 1)
    assert fields["perplexity"] == pytest.approx((4**4 * 2**2) ** (1 / 6))
    assert fields["iwae_perplexity"] == pytest.approx((4**4 * 2**2) ** (1 / 6) * math.exp(-0.1))
    assert fields["perplexity"] == pytest.approx(math.exp(-fields["nats_per_sample"]))
    assert "nll_nats" not in fields


def test_errors_of_means_over_words_are_those_of_sentences_drawn_again():
    """Bootstrap over sentences: what the spread of the ratio would be with other sentences of the same text."""
    rng = np.random.default_rng(0)
    frames = rng.integers(2, 20, 400).astype(float)
    elbos = -4.0 * frames + rng.normal(size=400) * 5 + 0.8 * frames * rng.normal(size=400)
    sums = row(
        sequences=400.0,
        frames=frames.sum(),
        elbo=elbos.sum(),
        elbo_squared=np.square(elbos).sum(),
        elbo_frames=(elbos * frames).sum(),
        frames_squared=np.square(frames).sum(),
    )
    fields = result_fields(sums, Question(split="test", seeds=[0]), TOKENS, 1)
    drawn = rng.integers(0, 400, (2000, 400))
    ratios = elbos[drawn].sum(1) / frames[drawn].sum(1)
    assert fields["nats_per_sample_stderr"] == pytest.approx(ratios.std(), rel=0.1)
    assert fields["perplexity_stderr"] == pytest.approx(np.exp(-ratios).std(), rel=0.1)
    assert result_fields(sums, Question(split="test", seeds=[0]), PCM16, 4)["nats_per_sample_stderr"] == pytest.approx(
        fields["nats_per_sample_stderr"] / 4
    )
    assert math.isnan(result_fields(row(), Question(split="test", seeds=[0]), PCM16, 1)["nats_per_sample_stderr"])


def test_sums_for_errors_count_real_frames_alone(model):
    given = batch()._replace(lengths_B=torch.tensor([6, 0, 1, 6, 3]))
    sums = Sums(*sums_of(model, [given])[0].tolist())
    alone = [Sums(*sums_of(model, [batch([i])._replace(lengths_B=given.lengths_B[[i]])])[0].tolist()) for i in range(5)]
    assert sums.frames_squared == 36 + 1 + 36 + 9
    assert sums.elbo_frames == pytest.approx(sum(one.elbo * one.frames for one in alone))


def test_likelihood_of_images_is_in_nats_per_image():
    fields = result_fields(
        row(sequences=4.0, frames=4 * 784.0, elbo=-360.0), Question(split="test", seeds=[0]), BITS, 1
    )
    assert fields["nll_nats"] == 90.0
    assert "perplexity" not in fields and "iwae_nats" not in fields


@pytest.mark.parametrize(("sequences", "rows"), [(1680, 1696), (1, 32), (31, 32), (32, 64), (64, 96)])
def test_legacy_denominator_by_hand(sequences, rows):
    assert legacy_rows(sequences) == rows
    sums = row(sequences=float(sequences), frames=float(sequences), elbo=70_469.0 * rows)
    fields = result_fields(sums, Question(split="test", seeds=[0], with_legacy_denominator=True), PCM16, 200)
    assert fields["legacy_elbo_nats"] == pytest.approx(70_469)
    assert fields["elbo_nats"] == pytest.approx(70_469 * rows / sequences)


def test_accuracy_counts_known_labels_of_real_rows():
    def told(x_TBX, y_TBX, lengths_B, eps_TBZ):
        zeros_TB = torch.zeros(x_TBX.shape[:2])
        logits_BC = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        return Terms(zeros_TB, zeros_TB, zeros_TB, zeros_TB, zeros_TB, logits_BC)

    given = batch()._replace(
        labels_B=torch.tensor([1, 1, -1, 0, 1]), lengths_B=torch.tensor([6, 4, 1, 6, 0]), num_sequences=4
    )
    sums = sums_of(told, [given])
    fields = result_fields(sums, Question(split="test", seeds=[3]), TOKENS, 1)
    assert (fields["labelled"], fields["accuracy"]) == (3, pytest.approx(1 / 3))
    assert "accuracy" not in result_fields(sums_of(told, [batch()]), Question(split="test", seeds=[3]), TOKENS, 1)
