"""The order of training: golden vectors (the order must never change), permutations, windows, epochs, views."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.data.order import (
    Order,
    OrderError,
    permutation_key,
    permute,
    segments,
    utterances,
    view,
)

KEY = permutation_key(1234, "epoch", 0)
FRAMES = np.array([1 + (i * 7) % 10 for i in range(23)])


def test_golden_keys() -> None:
    assert [hex(word) for word in KEY.tolist()] == [
        "0x8f6c6ac3fd6a27f",
        "0x51e822a6520cc6cd",
        "0x93a505621ee04c70",
        "0x122a7ebbc2d0ae6e",
        "0x5f86e22fe4975540",
        "0x3080bd863a63fc2",
        "0xd02b39a95872b2aa",
        "0xc47221c6f4ee9971",
    ]


@pytest.mark.parametrize(
    ("size", "images"),
    [
        (1, [0]),
        (2, [1, 0]),
        (10, [6, 8, 0, 5, 9, 1, 2, 7, 3, 4]),
        (1000, [459, 84, 444, 354, 12, 573, 118, 297, 68, 719]),
        (4389, [1230, 4350, 2330, 494, 800, 3306, 3692, 4261, 109, 2170]),
    ],
)
def test_golden_permutations(size: int, images: list[int]) -> None:
    assert permute(np.arange(min(size, 10)), size, KEY).tolist() == images


def test_golden_permutations_of_large_ranges() -> None:
    key = permutation_key(7, "epoch", 3)
    assert permute(np.array([0, 1, 99_999_999]), 100_000_000, key).tolist() == [39645128, 78866320, 67443188]
    last = (1 << 40) - 2
    assert permute(np.array([0, 1, last]), last + 1, key).tolist() == [175740240962, 925767224170, 266829205160]


def test_golden_batches() -> None:
    order = Order(FRAMES, global_batch=4, window_batches=2, seed=1234)
    assert [order.ids(step).tolist() for step in (0, 4, 5, 11)] == [
        [1, 4, 14, 17],
        [0, 3, 6, 15],
        [1, 14, 4, 17],
        [20, 3, 19, 12],
    ]


def test_golden_epoch_of_three_windows() -> None:
    order = Order(FRAMES, global_batch=2, window_batches=4, seed=1234)
    assert [order.ids(step).tolist() for step in range(11)] == [
        [14, 17],
        [1, 4],
        [20, 10],
        [22, 11],
        [21, 7],
        [5, 8],
        [13, 16],
        [9, 2],
        [6, 12],
        [0, 3],
        [15, 18],
    ]


def permute_plainly(position: int, size: int, keys: list[int]) -> int:
    """The permutation again, with Python's integers and no numpy."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = position >> half, position % (1 << half)
        for key in keys:
            word = (right + key) % 2**64
            word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ ((word ^ (word >> 31)) % (1 << half))
        position = (left << half) + right
        if position < size:
            return position


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_permutation_is_one_to_one_and_agrees_with_plain_integers(size: int, seed: int, epoch: int) -> None:
    key = permutation_key(seed, "epoch", epoch)
    images = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(images), np.arange(size))
    probe = size // 2
    assert images[probe] == permute_plainly(probe, size, key.tolist())


def test_permutation_looks_random() -> None:
    size = 100_000
    images = permute(np.arange(size), size, KEY)
    assert abs(np.abs(np.diff(images)).mean() / size - 1 / 3) < 0.005
    other = permute(np.arange(size), size, permutation_key(1235, "epoch", 0))
    assert (images == other).mean() < 1e-3


@given(
    count=st.integers(1, 200),
    global_batch=st.integers(1, 20),
    window=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_no_sequence_twice_and_windows_are_sorted(
    count: int, global_batch: int, window: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(1, 50, count)
    if count < global_batch:
        return
    order = Order(frames, global_batch=global_batch, window_batches=window, seed=seed)
    epoch = [order.ids(step) for step in range(order.batches_per_epoch)]
    ids = np.concatenate(epoch)
    assert len(np.unique(ids)) == len(ids) == count // global_batch * global_batch
    positions = permute(np.arange(len(ids)), count, permutation_key(seed, "epoch", 0))
    for first in range(0, len(epoch), window):
        batches = sorted(epoch[first : first + window], key=lambda b: (frames[b[0]], frames[b[-1]]))
        assert all((np.diff(frames[batch]) >= 0).all() for batch in batches)
        assert all(frames[a[-1]] <= frames[b[0]] for a, b in itertools.pairwise(batches))
        members = positions[first * global_batch : (first + len(batches)) * global_batch]
        assert set(np.concatenate(batches)) == set(members)


@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_step_from_nothing_equals_one_after_another(steps: list[int]) -> None:
    walked = Order(FRAMES, global_batch=4, window_batches=2, seed=5)
    every = [walked.ids(step) for step in range(61)]
    jumping = Order(FRAMES, global_batch=4, window_batches=2, seed=5)
    for step in steps:
        fresh = Order(FRAMES, global_batch=4, window_batches=2, seed=5)
        assert np.array_equal(fresh.ids(step), every[step]) and np.array_equal(jumping.ids(step), every[step])


def test_the_left_over_sequences_differ_by_epoch_and_batches_are_not_in_order_of_length() -> None:
    order = Order(FRAMES, global_batch=4, window_batches=5, seed=3)
    epochs = [np.concatenate([order.ids(epoch * 5 + batch) for batch in range(5)]) for epoch in range(4)]
    left_over = [frozenset(range(23)) - set(epoch.tolist()) for epoch in epochs]
    assert all(len(left) == 3 for left in left_over) and len(set(left_over)) > 1
    longest = [[FRAMES[order.ids(epoch * 5 + batch)].max() for batch in range(5)] for epoch in range(4)]
    assert any(lengths != sorted(lengths) for lengths in longest)


def test_what_is_returned_may_be_changed() -> None:
    order = Order(FRAMES, global_batch=4, window_batches=2, seed=5)
    before = order.ids(0).copy()
    order.ids(0)[:] = -1
    assert np.array_equal(order.ids(0), before)


def test_fewer_sequences_than_a_batch() -> None:
    with pytest.raises(OrderError, match=r"data\.global_batch = 24: the training split has but 23 .* at most 23"):
        Order(FRAMES, global_batch=24, window_batches=2, seed=5)


def test_segments_share_a_frame_and_keep_the_rest() -> None:
    # 0 and 399 samples: fewer than two frames; 400: one scored; 8199: 39 scored; 8200: 40; 8400: 41, so a rest of 1.
    made = segments(np.array([0, 399, 400, 8199, 8200, 8400, 16_399]), 200, 40)
    assert made.recordings.tolist() == [2, 3, 4, 5, 5, 6, 6]
    assert made.starts.tolist() == [0, 0, 0, 0, 8000, 0, 8000]
    assert made.frames.tolist() == [1, 39, 40, 40, 1, 40, 40]


@given(st.lists(st.integers(0, 5000), max_size=20), st.integers(1, 50), st.integers(1, 12))
@settings(deadline=None)
def test_views_score_every_frame_after_the_first_exactly_once(lengths: list[int], frame: int, size: int) -> None:
    samples = np.array(lengths, np.int64)
    for made in (segments(samples, frame, size), utterances(samples, frame)):
        scored = [
            (recording, start // frame + t + 1)
            for recording, start, frames in zip(made.recordings, made.starts, made.frames, strict=True)
            for t in range(frames)
        ]
        assert (made.frames >= 1).all() and (made.starts % frame == 0).all()
        assert sorted(scored) == [(r, f) for r, n in enumerate(lengths) for f in range(1, n // frame)]
    assert len(np.unique(utterances(samples, frame).recordings)) == len(utterances(samples, frame))


def test_view_by_name() -> None:
    assert view("utterances", np.array([1000]), 200, 2).frames.tolist() == [4]
    assert view("segments", np.array([1000]), 200, 2).frames.tolist() == [2, 2]
    with pytest.raises(OrderError, match="unknown view 'lanes'"):
        view("lanes", np.array([1000]), 200, 2)
