"""LSTMs filled up with zeros for cuDNN's persistent kernels: the same numbers, in shapes that these kernels take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lstm import Case, assert_agree

from zfdist.model.kernels import cpp_library, cudnn_persistent

SERVES = cudnn_persistent.is_supported  # as it is, before the fixture stands in for it
SHAPES = {
    "steps": st.integers(1, 5), "batch": st.integers(1, 17), "inputs": st.integers(1, 140),
    "hidden": st.integers(1, 140), "seed": st.integers(0, 100),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def shapes_on_a_gpu():
    """Let a CPU take the way of a GPU; gives the shapes of the inputs and states that come to torch's LSTM."""
    taken, patch, plain = [], pytest.MonkeyPatch(), torch.lstm

    def lstm(value, state, *rest):
        taken.append((value.shape, state[0].shape))
        return plain(value, state, *rest)

    patch.setattr(cpp_library, "unsupported_reason", lambda *types: "not here")
    patch.setattr(cudnn_persistent, "is_supported", lambda *_: True)
    patch.setattr(torch, "lstm", lstm)
    yield taken
    patch.undo()


@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_forwards_equals_nn_lstm(steps, batch, inputs, hidden, seed):
    assert_agree(Case(steps, batch, inputs, hidden, seed=seed))


@settings(max_examples=20, deadline=None)
@given(**SHAPES, data=st.data())
def test_backwards_equals_nn_lstm_on_each_row(steps, batch, inputs, hidden, seed, data):
    others = data.draw(st.lists(st.integers(0, steps), min_size=batch - 1, max_size=batch - 1))
    lengths = torch.tensor([steps, *others])
    assert_agree(Case(steps, batch, inputs, hidden, lengths=lengths, seed=seed))


@pytest.mark.parametrize(("batch", "inputs", "hidden"), [(1, 1, 1), (8, 128, 128), (32, 200, 1024), (121, 300, 500)])
def test_meets_the_conditions_of_these_kernels(batch, inputs, hidden, shapes_on_a_gpu):
    Case(2, batch, inputs, hidden, dtype=torch.float32).run()
    (_, rows, inputs), (_, _, units) = shapes_on_a_gpu[-1]
    assert rows % 8 == inputs % 128 == units % 128 == 0
    assert rows <= 128
    assert units <= 1024


def test_in_fp16_is_near_and_gives_float32():
    case = Case(20, 5, 30, 40, dtype=torch.float32)
    expected, expected_gradients = case.with_gradients(case.run)
    with torch.autocast("cpu", torch.float16):
        got, gradients = case.with_gradients(case.run)
    assert got.dtype == torch.float32
    assert not torch.equal(got, expected)
    for a, b in zip((got, *gradients), (expected, *expected_gradients), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 5e-3 * b.norm()


def test_gives_every_result_at_the_size_that_was_asked_for():
    case = Case(4, 3, 5, 6)
    h_TBH, state = case.net(case.value, case.state)
    assert h_TBH.shape == (4, 3, 6)
    assert state.h_BH.shape == state.c_BH.shape == (3, 6)
    assert torch.equal(h_TBH[-1], state.h_BH)


class Like:
    """Says of itself what decides."""

    def __init__(self, batch, *, is_cuda=True):
        self.shape, self.is_cuda = (10, batch, 20), is_cuda


def test_serves_fp16_on_a_gpu_up_to_the_size_of_these_kernels():
    assert SERVES(Like(128), 1024, torch.float16)
    assert not SERVES(Like(129), 1024, torch.float16)
    assert not SERVES(Like(128), 1025, torch.float16)
    assert not SERVES(Like(128), 1024, torch.bfloat16)
    assert not SERVES(Like(128, is_cuda=False), 1024, torch.float16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
def test_cudnn_gives_the_same_on_a_gpu():
    case = Case(50, 9, 30, 200, dtype=torch.float32)
    expected = case.run()
    h_TBH, _ = cudnn_persistent.run(
        case.value.cuda(), case.state._make(s.cuda() for s in case.state), [w.cuda() for w in case.net.all_weights[0]],
        torch.float16,
    )  # fmt: skip
    assert (h_TBH.cpu() - expected[:-2]).norm() < 5e-3 * expected[:-2].norm()
