"""Threads of a worker: as many as have enough to do."""

from hypothesis import given
from hypothesis import strategies as st

from zfdist.build import threads_worth_having


def test_small_networks_take_one_thread_and_large_ones_all():
    assert threads_worth_having(593_000, 8 * 40, available=2) == 1  # the demo
    assert threads_worth_having(593_000, 32 * 40, available=32) == 4
    assert threads_worth_having(15_800_000, 32 * 40, available=32) == 32  # TIMIT


@given(st.integers(1, 10**9), st.floats(0, 1e6), st.integers(1, 256))
def test_at_least_one_and_never_more_than_there_are(weights, frames, available):
    threads = threads_worth_having(weights, frames, available)
    assert 1 <= threads <= available
    assert threads <= threads_worth_having(2 * weights, frames, available)
