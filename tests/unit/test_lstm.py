"""LSTMs by the sweeps in C++ against nn.LSTM: numbers, gradients, lengths, and what falls to torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zfdist.model.kernels import cpp_library
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.recurrent import lstm
from zfdist.model.recurrent.lstm import LSTM, BackwardLSTM


class Case:
    """A net with all its inputs; `lengths` for one that reads backwards."""

    def __init__(self, steps, batch, inputs, hidden, *, lengths=None, dtype=torch.float64, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = (LSTM if lengths is None else BackwardLSTM)(inputs, hidden).to(dtype)
            self.lengths = lengths
            self.value = torch.randn(steps, batch, inputs, dtype=dtype).requires_grad_()
            self.state = State(*torch.randn(2, batch, hidden, dtype=dtype).requires_grad_())
            self.mix = torch.randn(steps + 2, batch, hidden, dtype=dtype)

    def run(self):
        if self.lengths is not None:
            return self.net(self.value, self.lengths)
        h, state = self.net(self.value, self.state)
        return torch.cat([h, state.h_BH[None], state.c_BH[None]])

    def rival(self):
        """Return the same by nn.LSTM: backwards, each row by itself."""
        if self.lengths is None:
            h, last = nn.LSTM.forward(self.net, self.value, tuple(s[None] for s in self.state))
            return torch.cat([h, *last])
        rows = []
        for b, n in enumerate(self.lengths.tolist()):
            alone = nn.LSTM.forward(self.net, self.value[:n, b : b + 1].flip(0))[0].flip(0) if n else self.mix[:0, :1]
            rows.append(nn.functional.pad(alone, (0, 0, 0, 0, 0, len(self.value) - n)))
        return torch.cat(rows, dim=1)

    def real(self):
        """Return a mask of the steps that mean something."""
        if self.lengths is None:
            return torch.ones(len(self.value) + 2, len(self.mix[0]), 1)
        return (torch.arange(len(self.value))[:, None] < self.lengths)[..., None]

    def with_gradients(self, run):
        result = run() * self.real()
        leaves = [self.value, *(self.state if self.lengths is None else ()), *self.net.parameters()]
        scalar = (self.mix[: len(result)] * result.sin()).sum()
        return result, torch.autograd.grad(scalar, leaves)


def assert_agree(case, tolerance=1e-12):
    (result, gradients), (wanted, wanted_gradients) = case.with_gradients(case.run), case.with_gradients(case.rival)
    torch.testing.assert_close(result, wanted, rtol=tolerance, atol=tolerance)
    for got, expected in zip(gradients, wanted_gradients, strict=True):
        assert (got - expected).norm() <= tolerance * expected.norm().clamp(min=1.0)


@pytest.fixture(autouse=True)
def built():
    assert not cpp_library.unsupported_reason(torch.device("cpu"), torch.float64, torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12), batch=st.integers(1, 21), inputs=st.integers(1, 9), hidden=st.integers(1, 40),
    backwards=st.booleans(), seed=st.integers(0, 1000), draw=st.data(),
)  # fmt: skip
def test_equals_torch(steps, batch, inputs, hidden, backwards, seed, draw):
    lengths = None
    if backwards:
        some = st.lists(st.integers(0, steps), min_size=batch, max_size=batch).filter(any)
        lengths = torch.tensor(draw.draw(some))
    assert_agree(Case(steps, batch, inputs, hidden, lengths=lengths, seed=seed))


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1, 2])])
def test_equals_torch_where_a_weight_is_read_in_several_blocks(lengths):
    assert_agree(Case(3, 3, 5, 600, lengths=lengths))


def test_equals_torch_over_a_thousand_steps():
    assert_agree(Case(1000, 3, 4, 8), 1e-11)


@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 2])])
def test_gradients_are_those_of_finite_differences(lengths):
    case = Case(4, 2, 3, 3, lengths=lengths)

    def run(value, *weights):
        return torch.func.functional_call(
            case.net, dict(zip(names, weights, strict=True)), (value, case.state if lengths is None else lengths)
        )[0]

    names = [name for name, _ in case.net.named_parameters()]
    assert torch.autograd.gradcheck(run, (case.value, *case.net.parameters()))


@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 4, 1])])
def test_without_a_gradient_the_numbers_are_the_same(lengths):
    case = Case(9, 3, 5, 12, lengths=lengths)
    expected = case.run()
    with torch.no_grad():
        assert torch.equal(case.run(), expected)


@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 4, 1])])
def test_where_the_library_cannot_be_built_torch_gives_the_same(lengths, monkeypatch):
    case = Case(9, 3, 5, 12, lengths=lengths)
    wanted, wanted_gradients = case.with_gradients(case.run)
    monkeypatch.setattr(cpp_library, "unsupported_reason", lambda *types: "no compiler")
    monkeypatch.setattr(lstm, "_sweep", None)  # must not be reached
    result, gradients = case.with_gradients(case.run)
    for got, expected in zip((result, *gradients), (wanted, *wanted_gradients), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 4, 1] * 7)])
def test_bit_equal_on_every_number_of_threads(lengths, monkeypatch):
    case, results = Case(6, 21, 7, 30, lengths=lengths, dtype=torch.float32), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(lstm, "threads_for", lambda _, threads=threads: threads)
        result, gradients = case.with_gradients(case.run)
        results.append([result, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_stays_float32_under_autocast():
    case = Case(5, 3, 4, 6, dtype=torch.float32)
    expected = case.run()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.run(), expected)
        half = case.net(case.value.bfloat16(), case.state)[0]
    assert half.dtype == torch.float32
