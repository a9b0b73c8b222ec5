"""Paired differences with errors: by hand, by drawing again, and the refusals."""

import dataclasses

import numpy as np
import pytest

from zfdist.evaluation import compare, scores
from zfdist.evaluation.results import EvaluationError

WHAT = dict.fromkeys(scores.SAME) | {
    "data_fingerprint": "abc", "split": "test", "kind": "pcm16", "view": "segments", "frame_samples": 4, "data": "d",
    "model": "vrnn", "step": 8, "is_exact": False, "iwae_samples": 5,
}  # fmt: skip


def make(bounds, seed=1, hidden=8, groups=None, frames=None, **what):
    count = len(bounds)
    values = np.asarray(bounds, float)
    return scores.Scores(
        what=WHAT | what, config={"train": {"seed": seed}, "model": {"hidden": hidden}, "checkpoint": {"x": seed}},
        result={}, ids_N=np.arange(count), names=[str(i) for i in range(count)],
        groups=[str(g) for g in (range(count) if groups is None else groups)],
        frames_N=np.ones(count, int) if frames is None else frames, elbo_N=values, log_px_N=values,
        kl_N=values * 0, iwae_N=values + 1,
    )  # fmt: skip


def test_a_difference_by_hand():
    one, two = make([1.0, 2.0, 3.0, 6.0]), make([0.0, 2.5, 1.0, 3.0], hidden=9)
    best, other = compare.sides({"two": two, "one": one})
    assert (best.name, other.name) == ("one", "two")
    d = compare.difference(other, best)
    values = np.array([-1.0, 0.5, -2.0, -3.0])
    assert d.mean_nats == pytest.approx(values.mean())
    assert d.stderr_nats == pytest.approx(values.std(ddof=1) / 2)
    assert d.nats_per_sample == pytest.approx(values.mean() / 4)
    assert d.share_better == 0.25 and np.isnan(d.seed_stderr_nats)


def test_pairing_and_groups_are_those_of_recordings_drawn_again():
    rng = np.random.default_rng(0)
    groups, frames = np.repeat(np.arange(50), 6), rng.integers(5, 20, 300)
    hard = rng.normal(size=50)[groups] * 100  # common to both: pairing takes it away
    one = make(hard + 2 + rng.normal(size=50)[groups], groups=groups, frames=frames)
    two = make(hard + rng.normal(size=300), hidden=9, groups=groups, frames=frames)
    first, second = compare.sides({"one": one, "two": two})
    d = compare.difference(first, second)
    drawn = rng.integers(0, 50, (3000, 50))
    means = np.bincount(groups, first.bound_N - second.bound_N)[drawn].sum(1) / 300
    assert d.stderr_nats == pytest.approx(means.std(), rel=0.1)
    assert abs(d.mean_nats) == pytest.approx(2, abs=5 * d.stderr_nats)


def test_seeds_of_one_configuration_are_one_side_with_an_error_of_their_own():
    named = {f"a{s}": make([1.0 + s, 3.0 + s], seed=s) for s in (0, 1, 2)}
    named |= {f"b{s}": make([0.0 + 2 * s, 1.0 + 2 * s], seed=s, hidden=9) for s in (0, 1)}
    first, second = compare.sides(named)
    assert (first.name, len(first.runs)) == ("a0 and 2 more seeds", 3)
    assert (second.name, len(second.runs)) == ("b0 and 1 more seed", 2)
    assert list(first.bound_N) == [2.0, 4.0] and list(second.bound_N) == [1.0, 2.0]
    assert compare.difference(first, second).seed_stderr_nats == pytest.approx((1.0 / 3 + 2.0 / 2) ** 0.5)
    twice = compare.sides({"x": make([1.0, 2.0], seed=1), "y": make([1.5, 2.0], seed=1)})
    assert [side.name for side in twice] == ["y", "x"], "the same seed twice is no sample of seeds"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"data_fingerprint": "xyz"}, "one and two do not compare: different data, abc and xyz"),
        ({"split": "valid"}, "one and two do not compare: different splits, test and valid"),
        ({"view": "utterances"}, "other sequences"),
        ({"frame_samples": 5}, "frames of other lengths, 4 and 5"),
        ({"std": 3.0}, "other units"),
        ({"words_sha256": "f"}, "other vocabularies"),
        ({"iwae_samples": 9}, "IWAE of 5 and of 9 trajectories"),
    ],
)
def test_what_does_not_compare_is_refused_by_name(other, sentence):
    with pytest.raises(EvaluationError, match=sentence):
        compare.sides({"one": make([1.0, 2.0]), "two": make([1.0, 2.0], **other)}, "iwae")


def test_other_sequences_and_a_bound_that_was_not_asked_are_refused():
    one = make([1.0, 2.0])
    with pytest.raises(EvaluationError, match="hold different sequences"):
        compare.sides({"one": one, "two": make([1.0, 2.0, 3.0])})
    without = dataclasses.replace(one, iwae_N=None)
    with pytest.raises(EvaluationError, match="two has no IWAE bound"):
        compare.sides({"one": one, "two": without}, "iwae")
    exact = dataclasses.replace(without, what=WHAT | {"is_exact": True, "iwae_samples": None})
    best, _ = compare.sides({"one": one, "exact": exact}, "iwae")
    assert best.name == "one" and best.bound_N.mean() == 2.5, "a likelihood is its own IWAE"
