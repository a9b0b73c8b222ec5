"""Which checkpoints are written for their validation, and which stay: the best validation is always there."""

import math

from hypothesis import given
from hypothesis import strategies as st

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import retention
from zfdist.config import CheckpointConfig

ELBOS = st.one_of(st.none(), st.just(math.nan), st.integers(-5, 5).map(float))


@given(st.lists(ELBOS, min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 3))
def test_the_best_validations_are_kept_whatever_the_intervals_are(elbos, every, last, best):
    config = CheckpointConfig(every_steps=every, keep_last=last, keep_best=best)
    scores: dict[int, float | None] = {}
    for step, elbo in enumerate(elbos, start=1):
        if step % every == 0 or (elbo is not None and retention.is_among_best(step, elbo, scores, config)):
            scores[step] = elbo
            scores = {step: scores[step] for step in retention.kept(scores, config)}
    expected = checkpoint.ranked(dict(enumerate(elbos, start=1)))[:best]
    assert checkpoint.ranked(scores)[:best] == expected


def test_of_equal_validations_the_first_is_the_best_and_none_that_is_not_finite():
    assert checkpoint.ranked({4: -1.0, 2: -1.0, 8: math.nan, 6: None, 3: -0.5, 9: math.inf}) == [3, 2, 4]
    config = CheckpointConfig(keep_best=1)
    assert not retention.is_among_best(9, math.nan, {}, config)
    assert not retention.is_among_best(9, -1.0, {2: -1.0}, config)
    assert not retention.is_among_best(9, 5.0, {2: -1.0}, CheckpointConfig(keep_best=0))
