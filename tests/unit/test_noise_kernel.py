"""The noise in one kernel: the numbers of `seeding.normals`, in Triton's interpreter or, if there is one, on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted

from zfdist import seeding

pytest.importorskip("triton", reason="Triton is not installed: pip install the version that torch names")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
WORD = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Iterator[None]:
    with interpreted():
        import zfdist.noise_kernel  # noqa: F401

        yield


@settings(max_examples=30, deadline=None)
@given(
    key=st.tuples(WORD, WORD), positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=4),
    steps=st.integers(1, 5), dim=st.integers(1, 9),
)  # fmt: skip
def test_it_draws_what_seeding_defines(key, positions, steps, dim):
    """In the interpreter to the rounding of numpy's functions, which are not torch's; on a GPU to the bit."""
    from zfdist import noise_kernel

    positions_B = torch.tensor(positions, device=DEVICE)
    drawn = noise_kernel.normals(key, positions_B, steps, dim)
    expected = seeding._by_torch(key, positions_B, steps, dim)
    assert drawn.shape == expected.shape and drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, expected, rtol=0.0 if GPU else 1e-5, atol=0.0 if GPU else 2e-6)


def test_several_programs_and_none():
    from zfdist import noise_kernel

    positions_B = torch.arange(7, device=DEVICE)
    torch.testing.assert_close(
        noise_kernel.normals((1, 2), positions_B, 23, 17), seeding._by_torch((1, 2), positions_B, 23, 17),
        rtol=1e-5, atol=2e-6,
    )  # fmt: skip
    assert noise_kernel.normals((1, 2), positions_B[:0], 3, 4).shape == (3, 0, 4)


def test_where_the_kernel_cannot_run_or_gives_other_bits_noise_is_made_op_by_op():
    cpu = torch.device("cpu")
    assert seeding.describe(cpu) == "op by op"
    if not GPU:
        assert seeding.describe(torch.device("cuda")).startswith("op by op (")
    assert seeding._is_same(seeding._by_torch, cpu)
    assert not seeding._is_same(lambda *case: torch.nextafter(seeding._by_torch(*case), torch.tensor(9.0)), cpu)
