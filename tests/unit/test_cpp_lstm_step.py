"""Steps of the cell in C++ against those of torch: numbers, memory, who serves when, and what every system draws."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_systems import DENSITIES, SYSTEMS, B, T, X, data, make

from zfdist.model.kernels import cpp_library, cpp_lstm_step
from zfdist.model.kernels.cpp_lstm_step import OURS, Stepper
from zfdist.model.kernels.lstm_cell import GATES, State
from zfdist.model.recurrent.feature_recurrence import FeatureRecurrence
from zfdist.model.recurrent.layer_norm import LayerNormRecurrence
from zfdist.model.recurrent.lstm import LSTM
from zfdist.model.recurrent.recurrence import Recurrence

LONG = cpp_lstm_step.LEAST_STEPS


@pytest.fixture(autouse=True)
def _without_gradients():
    assert not cpp_library.unsupported_reason(torch.device("cpu"), torch.float64, torch.float64)
    with torch.no_grad():
        yield


def cell_of(hidden, z_dim, dtype=torch.float64, implementation="auto"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrence(hidden, z_dim, 2, 0.0, implementation).to(dtype)


def inputs(batch, hidden, z_dim, dtype=torch.float64, seed=0):
    """Return a projected input, z and a state."""
    generator = torch.Generator().manual_seed(seed)
    gx, z, h, c = (
        torch.randn(batch, n, generator=generator, dtype=dtype) for n in (GATES * hidden, z_dim, hidden, hidden)
    )
    return gx, z, State(h, c)


def assert_same_walk(step, expected_step, gx, z, state, tolerance=1e-12):
    """Compare three steps in a row; no state may change after it was given away."""
    walks = [[state], [state]]
    for _ in range(3):
        for walk, one in zip(walks, (step, expected_step), strict=True):
            walk.append(one(gx, z, walk[-1]))
    for got, expected in zip(*walks, strict=True):
        torch.testing.assert_close(tuple(got), tuple(expected), rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 21), hidden=st.integers(1, 40), z_dim=st.integers(1, 20), seed=st.integers(0, 1000),
    wide=st.booleans(),
)  # fmt: skip
def test_equals_torch(batch, hidden, z_dim, seed, wide):
    dtype, tolerance = (torch.float64, 1e-12) if wide else (torch.float32, 2e-6)
    cell, given = cell_of(hidden, z_dim, dtype), inputs(batch, hidden, z_dim, dtype, seed)
    before = [value.clone() for value in (*given[:2], *given[2])]
    assert_same_walk(Stepper(cell.w_h_GH, cell.w_z_GZ, OURS), cell.step, *given, tolerance)
    assert all(torch.equal(old, new) for old, new in zip(before, (*given[:2], *given[2]), strict=True))


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 21), width=st.integers(1, 9), hidden=st.integers(1, 40), begun=st.booleans())
def test_equals_nn_lstm(batch, width, hidden, begun):
    lstm = LSTM(width, hidden).double()
    value, (_, _, state) = torch.randn(batch, width, dtype=torch.float64), inputs(batch, hidden, 1)
    got = expected = state if begun else None
    step = lstm.stepping(LONG)
    for _ in range(3):
        got, expected = step(value, got), lstm.step(value, expected)
        torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_torch_where_weights_are_read_in_several_blocks(batch):
    cell = cell_of(600, 520)
    assert_same_walk(cell.stepping(LONG), cell.step, *inputs(batch, 600, 520), 1e-11)


def test_inputs_of_any_layout_and_type_and_single_rows_for_all():
    cell = cell_of(5, 3)
    step, (gx, z, state) = cell.stepping(LONG), inputs(4, 5, 3)
    strided = [torch.stack([value, value], dim=-1)[..., 0] for value in (gx, z, *state)]
    assert not any(value.is_contiguous() for value in strided)
    expected = cell.step(gx, z, state)
    torch.testing.assert_close(step(strided[0], strided[1], State(*strided[2:])), expected)
    torch.testing.assert_close(step(gx.float().double(), z.float(), state), cell.step(gx.float().double(), z, state))
    for some in ((gx[:1], z, state), (gx, z[:1].expand(4, -1), state), (gx[:1], z, State(*(s[:1] for s in state)))):
        torch.testing.assert_close(step(*some), cell.step(*some))


def test_shapes_that_do_not_fit_are_refused():
    step, (gx, z, state) = cell_of(5, 3).stepping(LONG), inputs(4, 5, 3)
    for wrong in ((gx[:, 1:], z, state), (gx, z[:, 1:], state), (gx, z, State(state.h_BH[:2], state.c_BH))):
        with pytest.raises(ValueError, match=r"step of an LSTM: .*should (be|have)"):
            step(*wrong)


def test_weights_may_have_any_layout_and_change_afterwards():
    cell, given = cell_of(6, 3), inputs(2, 6, 3)
    expected = cell.step(*given)
    step = Stepper(cell.w_h_GH.t().contiguous().t(), cell.w_z_GZ.t().contiguous().t(), OURS)
    cell.w_h_GH.zero_()
    torch.testing.assert_close(step(*given), expected)


def test_bit_equal_on_every_number_of_threads(monkeypatch):
    cell, given, results = cell_of(30, 7, torch.float32), inputs(21, 30, 7, torch.float32), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpp_lstm_step, "threads_for", lambda _, threads=threads: threads)
        results.append(cell.stepping(LONG)(*given))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_packed_weights_are_freed_with_their_stepper(monkeypatch):
    calls, original = [], cpp_lstm_step.call
    monkeypatch.setattr(cpp_lstm_step, "call", lambda name, *rest: (calls.append(name), original(name, *rest)))
    step = cell_of(5, 3).stepping(LONG)
    step(*inputs(4, 5, 3))
    assert calls == ["steps_pack", "steps_step"]
    del step
    gc.collect()
    assert calls == ["steps_pack", "steps_step", "steps_release"]


def is_native(module, steps=LONG):
    return module.stepping(steps) != module.step


def test_who_serves(monkeypatch):
    cell, lstm = cell_of(5, 3, torch.float32), LSTM(4, 5)
    for module in (cell, lstm):
        assert is_native(module)
        assert not is_native(module, LONG - 1)
        with torch.enable_grad():
            assert not is_native(module)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert not is_native(module)
        with monkeypatch.context() as patch:
            patch.setattr(cpp_library, "unsupported_reason", lambda *types: "no compiler")
            assert not is_native(module)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_native(cell)
        assert is_native(lstm), "which stays float32"
    served = {name: is_native(cell_of(5, 3, implementation=name)) for name in ("native", "bptt", "reference")}
    assert served == {"native": True, "bptt": False, "reference": False}
    assert not is_native(cell_of(5, 3, torch.bfloat16))
    assert not is_native(LSTM(4, 5).bfloat16())
    assert not is_native(LayerNormRecurrence(5, 3, 2, 0.0)) and not is_native(FeatureRecurrence(5, 3, 2, 0.0))


def test_an_lstm_stays_float32_under_autocast():
    lstm, value, (_, _, state) = LSTM(4, 5), torch.randn(2, 4), inputs(2, 5, 1, torch.float32)
    expected = lstm.step(value, state)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lstm.stepping(LONG)(value, state), expected)


def drawn(model, density, given, monkeypatch, least):
    """Return what a system generates if C++ serves from so many steps on, and how many steps it made."""
    counted, original = [], cpp_lstm_step.call
    monkeypatch.setattr(cpp_lstm_step, "call", lambda name, *rest: (counted.append(name), original(name, *rest)))
    monkeypatch.setattr(cpp_lstm_step, "LEAST_STEPS", least)
    generator = torch.Generator().manual_seed(2)
    eps = torch.randn(T, B, model.noise_dim, generator=generator, dtype=torch.float64)
    frames, lengths, eps_z = data(density)
    options = {"x_BX": frames[0]}
    if given:
        zeros = torch.zeros_like(eps_z)
        options |= {"state": model.infer(frames[:-1], frames[1:], lengths, zeros).state, "z_TBZ": zeros + 0.3}
    result = model.generate(eps_z, eps, **options)
    monkeypatch.undo()
    return result, counted.count("steps_step")


def leaves(state):
    return [part for value in state for part in (leaves(value) if isinstance(value, tuple) else [value])]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("system", [system for system in SYSTEMS if system != "lru"])  # which has no LSTM
def test_every_system_draws_what_it_draws_by_torch(system, density, given, monkeypatch):
    model = make(system, density)
    expected, none = drawn(model, density, given, monkeypatch, T + 1)
    result, steps = drawn(model, density, given, monkeypatch, T)
    assert (none, steps) == (0, T)
    assert result.x_TBX.shape == ((T, B) if density == "categorical" else (T, B, X))
    torch.testing.assert_close(result.x_TBX, expected.x_TBX, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(leaves(result.state), leaves(expected.state), rtol=1e-11, atol=1e-11)
