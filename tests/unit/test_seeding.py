"""Noise is a pure function of its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist import seeding

# Random123's known answers for philox4x32-10: counter, key, result.
GOLDEN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), GOLDEN)
def test_philox_golden_vectors(counter, key, expected):
    words = seeding.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def test_philox_leaves_its_counter_alone():
    counter = tuple(torch.full((3,), c) for c in (1, 2, 3, 4))
    seeding.philox(counter, (5, 6))
    assert [int(c[0]) for c in counter] == [1, 2, 3, 4]


def test_keys_golden_and_distinct():
    # Frozen: another key would give resumed runs another noise.
    assert seeding.key(1234, "noise", 7) == (0xCC6DCB15, 0xDFC093AF)
    assert seeding.torch_seed(1234, "init") == 0x13ECD4B746BA9B27
    places = [(s, name, n) for s in (0, 1, 12) for name in ("noise", "init", "evaluate") for n in (0, 1, 23)]
    assert len({seeding.key(*place) for place in places}) == len(places)
    assert all(0 <= seeding.torch_seed(s, "init") < 2**63 for s in range(100))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dim=st.integers(1, 37), steps=st.integers(1, 9))
def test_an_element_depends_on_key_position_step_and_dimension_only(data, dim, steps):
    positions = data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
    wide = seeding.normals((3, 4), torch.tensor(positions), steps + 3, dim + 5)
    some = data.draw(st.lists(st.integers(0, len(positions) - 1), min_size=1, max_size=9))
    part = seeding.normals((3, 4), torch.tensor([positions[i] for i in some]), steps, dim)
    assert torch.equal(part, wide[:steps, some, :dim])


def test_positions_beyond_32_bits_differ():
    near, far = seeding.normals((3, 4), torch.tensor([5, 5 + 2**32]), 2, 8).unbind(1)
    assert not torch.equal(near, far)


def test_normals_are_standard_normal_and_independent():
    noise = seeding.normals(seeding.key(0, "noise"), torch.arange(200), 50, 20).double()
    assert noise.shape == (50, 200, 20)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    # Neighbours in every direction, which share a block, a row or a step.
    for shifted in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[..., 1:] * noise[..., :-1]):
        assert abs(shifted.mean()) < 4 / shifted.numel() ** 0.5
    # All dimensions with each other, of which four share a block; their squares, lest they share a radius.
    rows = noise.flatten(0, 1)
    for columns in (rows, (rows**2 - 1) / 2**0.5):
        correlation = columns.T @ columns / len(rows)
        off_diagonal = correlation[~torch.eye(20, dtype=torch.bool)]
        assert off_diagonal.abs().max() < 5 / len(rows) ** 0.5
    ordered = noise.flatten().sort().values
    expected = torch.distributions.Normal(0.0, 1.0).cdf(ordered)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (expected - uniform).abs().max() < 1.63 / n**0.5  # Kolmogorov-Smirnov, 1 %


def test_other_step_or_seed_gives_other_noise():
    positions = torch.arange(4)
    drawn = [seeding.normals(seeding.key(s, "noise", n), positions, 3, 4) for s, n in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_extreme_words_stay_finite():
    words = torch.tensor([0, 2**32 - 1])
    for normal in seeding._box_muller(words, words.flip(0)):
        assert torch.isfinite(normal).all()


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    seeding.normals((1, 2), torch.arange(3), 4, 5)
    assert torch.equal(torch.get_rng_state(), before)
