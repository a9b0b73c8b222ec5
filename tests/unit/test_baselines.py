"""Simple models: they are distributions, they come to what is known in closed form, and see nothing of the future."""

import itertools
import math

import harness
import numpy as np
import pytest
import torch

from zfdist.config import DataConfig
from zfdist.data.kinds import UNKNOWN
from zfdist.data.loader import evaluation_batches
from zfdist.data.store import Store
from zfdist.evaluation.baseline_scores import baselines
from zfdist.evaluation.baselines import digits, sound, words
from zfdist.evaluation.baselines.words import Text
from zfdist.evaluation.results import EvaluationError

START, END = 1, 2


def text(*sentences):
    """The framed words of sentences of ids, as `words.read` gives them."""
    rows = []
    for number, sentence in enumerate(sentences):
        framed = [-1, START, *sentence, END]
        rows += [(framed[i], framed[i - 1], framed[i - 2], number) for i in range(2, len(framed))]
    return Text(*np.array(rows, np.int64).T)


@pytest.mark.parametrize("model", [words.unigram, words.trigram])
def test_words_have_probabilities_that_add_up(model):
    rng = np.random.default_rng(0)
    vocabulary = 9
    train = text(*(rng.integers(3, vocabulary, rng.integers(1, 7)).tolist() for _ in range(60)))
    others = [word for word in range(vocabulary) if word not in (0, START)]
    for second, before in [(-1, START), (START, 4), *itertools.product(others[1:], others[1:])]:
        count = len(others)
        asked = Text(np.array(others), np.full(count, before), np.full(count, second), np.zeros(count, np.int64))
        log_p = model(train, asked, vocabulary)
        assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-12), (second, before)
        assert np.isfinite(log_p).all()


def test_kneser_ney_by_hand():
    """Of three sentences a b, a b and a a: a, and then b, by all three orders."""
    a, b = 4, 5
    log_p = words.trigram(text([a, b], [a, b], [a, a]), text([a, b]), 6)
    d3 = (2 + 0.5) / (2 + 2 * 2 + 1)  # <s> a a, a a </s> once; <s> a b, a b </s> twice
    d2 = (4 + 0.5) / (4 + 0 + 1)  # <s> a three times; a a, a b, a </s>, b </s> each after one word
    d1 = (1 + 0.5) / (1 + 2 * 2 + 1)  # b follows one word, a and </s> follow two
    p1 = {word: max(count - d1, 0) / 5 + d1 * 3 / 5 / 4 for word, count in ((a, 2), (b, 1), (END, 2))}
    first = (3 - d2) / 3 + d2 * 1 / 3 * p1[a]
    pair = (1 - d2) / 3 + d2 * 3 / 3 * p1[b]  # after a come a, b and </s>
    second = (2 - d3) / 3 + d3 * 2 / 3 * pair
    assert np.exp(log_p[:2]) == pytest.approx([first, second])


def test_a_trigram_knows_more_than_a_unigram_of_a_text_that_has_an_order():
    rng = np.random.default_rng(1)
    sentences = [[4 + (start + i) % 20 for i in range(8)] for start in rng.integers(0, 20, 200)]
    train, test = text(*sentences[:150]), text(*sentences[150:])
    assert words.trigram(train, test, 24).mean() > words.unigram(train, test, 24).mean() + 2.0
    assert np.isfinite(words.trigram(train, text([UNKNOWN, UNKNOWN]), 24)).all(), "never seen, but possible"


def test_the_mixture_of_bernoullis_finds_its_components_and_is_a_distribution():
    rng = np.random.default_rng(0)
    means = np.array([[0.9] * 5 + [0.1] * 5, [0.1] * 5 + [0.9] * 5])
    x = (rng.random((4000, 10)) < means[rng.integers(0, 2, 4000)]).astype(np.uint8)
    log_weights, found = digits.mixture(x[:3000], x[3000:], 2)
    assert np.sort(found, axis=0) == pytest.approx(np.sort(means, axis=0), abs=0.05)
    every = np.array(list(itertools.product((0, 1), repeat=10)), np.uint8)
    assert np.exp(digits._log_joint(every, log_weights, found)).sum() == pytest.approx(1.0, abs=1e-5)


def test_linear_prediction_comes_to_the_entropy_of_a_process_of_its_kind():
    rng = np.random.default_rng(0)
    sigma, count = 0.3, 100 * 200
    wave = np.zeros(count)
    for n, noise in enumerate(rng.normal(size=count) * sigma):
        wave[n] = 1.6 * wave[n - 1] - 0.8 * wave[n - 2] + noise if n > 1 else noise
    frames = wave.reshape(-1, 200)
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    predicted = sound.linear_prediction(frames, 0.95).log_p(1.0, 1e-6, 1e-3) / (99 * 200)
    assert predicted == pytest.approx(-entropy, abs=0.03)
    assert sound.previous_frame(frames).log_p(1.0, 1e-6, 1e-3) / (99 * 200) < -entropy - 0.5


@pytest.mark.parametrize("predictor", [sound.previous_frame, lambda x_TF: sound.linear_prediction(x_TF, 0.7)])
def test_a_prediction_reads_nothing_of_what_it_predicts(predictor):
    """Of frames 0 to 5 the last samples of frame 3 change: frame t is scored as number t - 1."""
    x_TF = np.random.default_rng(0).normal(size=(6, 40))
    changed = x_TF.copy()
    changed[3, 20:] += 1.0
    before, after = predictor(x_TF), predictor(changed)
    assert np.allclose(before.squares_T[:2], after.squares_T[:2], rtol=1e-12)
    assert not np.isclose(before.squares_T[2], after.squares_T[2])
    assert np.allclose(before.variances_T[:3], after.variances_T[:3], rtol=1e-12)
    assert not np.isclose(before.variances_T[3], after.variances_T[3])


def test_silence_is_no_infinite_density():
    x_TF = np.zeros((5, 40))
    expected = -160 * (0.5 * math.log(2 * math.pi) + math.log(1e-3))
    for frames in (sound.previous_frame(x_TF), sound.linear_prediction(x_TF, 0.7)):
        assert frames.log_p(1.0, 1e-8, 1e-3) == pytest.approx(expected)


@pytest.mark.parametrize("view", ["utterances", "segments"])
def test_they_score_the_sequences_that_networks_do(tmp_path, view):
    store = Store.open(harness.make_store(tmp_path / "sound", held_out=12))
    data = DataConfig(root=str(store.root), frame_samples=3 * harness.FRAME, segment_frames=4, eval_view=view)
    batches = list(evaluation_batches(store, data, "test", rank=0, world_size=1, device=torch.device("cpu")))
    ids, lengths = (torch.cat([getattr(batch, name) for batch in batches]).tolist() for name in ("ids_B", "lengths_B"))
    found = list(baselines(store, data, "test", 1e-3))
    assert [one.what["model"] for one in found] == ["frame-gaussian", "ar-16"]
    for one in found:
        assert dict(zip(one.ids_N.tolist(), one.frames_N.tolist(), strict=True)) == dict(zip(ids, lengths, strict=True))
        assert np.isfinite(one.elbo_N).all()
        assert one.result["elbo_nats"] == pytest.approx(one.elbo_N.mean())
    assert found[1].result["elbo_nats"] > found[0].result["elbo_nats"], "the sound is of resonances"
    with pytest.raises(EvaluationError, match="split 'dev'"):
        list(baselines(store, data, "dev", 1e-3))
