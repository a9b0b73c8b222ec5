"""Which recordings of a loop are made and kept, and what may happen while one is made."""

import math
import types

import pytest
import torch
import unrolls
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import LOOP, Recorder, bytes_of, recorded

from zfdist import profile
from zfdist.config import EngineConfig, OptimConfig
from zfdist.engine import Engine
from zfdist.model.kernels import cuda_graphs, matmul_backend
from zfdist.model.kernels.cuda_graphs import Graphs
from zfdist.model.recurrent.recurrence import reference
from zfdist.world import connect


def test_without_a_gradient_nothing_is_recorded_and_nothing_evicted():
    """A validation comes with a shape for nearly every batch; those of training must be there after it."""
    training = [unrolls.arguments(n, 2, 4, 2, 3) for n in (8, 12)]
    run, recorder = recorded(sum(bytes_of(case) for case in training))
    for case in (*training, *training):
        unrolls.results(run, case)
    assert recorder.made == 4
    for _ in range(3):
        for steps in (4, 6, 8, 16, 20, 24, 28, 32, 36, 40, 44):
            case = unrolls.arguments(steps, 2, 4, 2, 3)
            with torch.no_grad():
                unrolls.assert_close(reference(case), run(case), 1e-12)
    assert recorder.made == 4
    for case in training:
        unrolls.assert_close(unrolls.results(reference, case), unrolls.results(run, case), 1e-12)
    assert recorder.made == 4


def test_how_products_are_rounded_is_part_of_what_a_recording_is_made_for():
    """As trials of fp32 and tf32 in one process do; oneDNN's switch stands in for the GPU's."""
    run, recorder = recorded()
    given = unrolls.arguments(6, 2, 4, 2, 3)
    for _ in range(2):
        unrolls.results(run, given)
    gpu = torch.device("cuda")
    for how in (matmul_backend.float32(gpu, "tf32"), matmul_backend.float32(gpu, "fp32")):
        made = recorder.made
        with how:
            for _ in range(3):
                unrolls.results(run, given)
        assert recorder.made == made + 2
    for _ in range(2):
        unrolls.results(run, given)
    assert recorder.made == 6


def test_a_profile_waits_for_nothing_while_a_loop_is_recorded(monkeypatch, tmp_path):
    """The backward pass that is recorded is a range of the profile, at whose end a GPU may not be waited for."""
    capturing, waits = [False], []

    def record(function):
        capturing[0] = True
        recorded = Recorder()(function)
        capturing[0] = False
        return recorded

    clock = profile._Clock(tmp_path / "trace", print)
    clock._on_gpu, clock._steps = True, clock.left_out  # as in a step that is counted, on a GPU
    monkeypatch.setattr(profile, "_clock", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(capturing[0]))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    run = Graphs(LOOP, record, math.inf)
    for _ in range(3):
        unrolls.results(run, unrolls.arguments(6, 2, 4, 2, 3))
    assert waits and not any(waits)


def test_a_run_that_ends_gives_up_its_recordings():
    engine = Engine(torch.nn.Linear(2, 2), EngineConfig(), OptimConfig(), connect())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=2**30))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.5)
        kept = cuda_graphs.graphs_of(LOOP)
        assert kept is cuda_graphs.graphs_of(LOOP) and kept._limit_bytes == 2**27
        engine.close()
        assert kept is not cuda_graphs.graphs_of(LOOP)
        cuda_graphs.forget()


def test_no_more_memory_than_the_limit_and_the_least_used_goes():
    shapes = {n: unrolls.arguments(n, 2, 4, 2, 3) for n in (4, 8, 12)}
    run, recorder = recorded(bytes_of(shapes[8]) + bytes_of(shapes[12]))
    for n in (4, 4, 8, 8):
        unrolls.results(run, shapes[n])
    assert recorder.made == 4
    unrolls.results(run, shapes[4])  # now 8 is the older
    for _ in range(2):
        unrolls.results(run, shapes[12])
    assert recorder.made == 6
    unrolls.results(run, shapes[4])
    assert recorder.made == 6, "4 was kept"
    unrolls.results(run, shapes[8])
    assert recorder.made == 6, "8 is new again: run as it comes"
    unrolls.results(run, shapes[8])
    assert recorder.made == 8


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 200_000))
def test_recordings_that_are_kept_never_hold_more_than_the_limit(lengths, limit_bytes):
    run, _ = recorded(limit_bytes)
    for steps in lengths:
        given = unrolls.arguments(steps, 1, 2, 2, 2)
        for _ in range(2):
            unrolls.results(run, given)
        assert run.held_bytes <= limit_bytes


def test_what_is_too_large_is_recorded_once_and_not_again():
    given = unrolls.arguments(6, 2, 4, 2, 3)
    run, recorder = recorded(bytes_of(given) - 1)
    for _ in range(5):
        unrolls.assert_close(unrolls.results(reference, given), unrolls.results(run, given), 1e-12)
    assert recorder.made == 2 and run.held_bytes == 0


def test_where_all_recordings_are_in_use_the_loop_runs_as_it_comes():
    given = unrolls.arguments(6, 2, 4, 2, 3)
    run, recorder = recorded(bytes_of(given))
    outputs = [run(given) for _ in range(4)]
    assert recorder.made == 2
    leaves = [a for a in given[:-2] if a.requires_grad]
    expected = unrolls.results(reference, given)
    for o in outputs:
        unrolls.assert_close(expected, [*o, *torch.autograd.grad(unrolls.mixed(o), leaves)], 1e-12)
