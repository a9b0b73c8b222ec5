"""The factor on the loss under fp16, as a function of what has happened."""

import functools
import math

from hypothesis import given
from hypothesis import strategies as st

from zfdist.loss_scale import GROW_AFTER, LossScale


def after(updates: list[bool], start: LossScale) -> LossScale:
    return functools.reduce(lambda scale, skipped: scale.after(skipped=skipped), updates, start)


@given(st.lists(st.booleans(), max_size=60))
def test_is_a_power_of_two(updates):
    assert math.log2(after(updates, LossScale()).value).is_integer()


@given(st.integers(0, GROW_AFTER - 1))
def test_an_overflow_halves_it_and_starts_the_count_again(updates):
    scale = after([False] * updates + [True], LossScale(64.0))
    assert scale == LossScale(32.0, 0)


def test_doubles_after_so_many_updates_without_an_overflow():
    assert after([False] * (GROW_AFTER - 1), LossScale(64.0)).value == 64.0
    assert after([False] * GROW_AFTER, LossScale(64.0)) == LossScale(128.0, 0)
    assert after([False] * (3 * GROW_AFTER), LossScale(64.0)).value == 512.0


def test_falls_below_one_within_fewer_updates_than_end_a_run():
    from zfdist.config import EngineConfig

    assert after([True] * (EngineConfig().max_nonfinite_steps - 1), LossScale()).value < 1.0
