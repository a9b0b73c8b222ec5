"""The recurrence as recorded graphs: all but the recording itself is tested here, with one that runs the code again."""

import gc
import math

import pytest
import torch
import unrolls
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import Recorder, recorded
from test_latent_chain import Case

from zfdist.model.kernels import cuda_graphs, manual_backward
from zfdist.model.kernels.core_arguments import ChainCore, Core
from zfdist.model.kernels.cuda_graphs import Graphs
from zfdist.model.kernels.manual_backward import BPTT
from zfdist.model.kernels.recording import Loop, idle_row, padded
from zfdist.model.recurrent.latent_chain import ByHand, by_hand
from zfdist.model.recurrent.recurrence import choose, reference


def test_lengths_are_rounded_up_by_a_sixteenth_at_most():
    for steps in range(1, 2000):
        length = padded(steps)
        assert steps <= length < steps + max(4, steps / 16 + 1)
        assert padded(length) == length
    assert [padded(n) for n in (1, 16, 40, 100, 784)] == [4, 16, 40, 100, 800]
    assert len({padded(n) for n in range(1, 1025)}) <= 80


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=6), batch=st.integers(1, 3), hidden=st.integers(1, 6),
    z_dim=st.integers(1, 4), mlp_dim=st.integers(1, 5), bound=st.sampled_from([0.0, 0.5, 8.0]),
    scale=st.sampled_from([0.3, 2.0]),
)  # fmt: skip
def test_replays_equal_what_was_recorded_at_every_length(steps, batch, hidden, z_dim, mlp_dim, bound, scale):
    run, recorder = recorded()
    for i, length in enumerate([*steps, *steps]):  # the second time around all shapes are known
        given = unrolls.arguments(length, batch, hidden, z_dim, mlp_dim, bound=bound, scale=scale, seed=i)
        unrolls.assert_close(unrolls.results(manual_backward.unroll, given), unrolls.results(run, given), 1e-13)
    assert recorder.made == 2 * len({padded(n) for n in steps}), "a forward and a backward pass for each length"


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=5), batch=st.integers(1, 3), z_dim=st.integers(1, 4),
    mlp_dim=st.integers(1, 5), clamp=st.sampled_from([0.7, 8.0]),
)  # fmt: skip
def test_the_chain_of_srnn_is_recorded_too(steps, batch, z_dim, mlp_dim, clamp):
    recorder = Recorder()
    run = Graphs(Loop(ByHand, timed=2), recorder, math.inf)
    for i, length in enumerate([*steps, *steps]):
        case = Case(length, batch, z_dim, mlp_dim, clamp, 0.5, seed=i)
        weights = (case.module.w_z_PZ, case.module.w_q_2QM, case.module.b_q_2Q)
        pq = torch.cat([case.pd, case.qa], dim=-1).detach().requires_grad_()
        given = ChainCore(pq, case.eps, case.z, *weights, clamp, torch.float64)
        unrolls.assert_close(unrolls.results(by_hand, given), unrolls.results(run, given), 1e-12)
    assert recorder.made == 2 * len({padded(n) for n in steps})


def test_steps_beyond_the_end_change_no_bit_of_what_comes_out():
    run, _ = recorded()
    exact = unrolls.arguments(5, 2, 4, 3, 4)  # recorded with 8
    expected = unrolls.results(manual_backward.unroll, exact)
    unrolls.results(run, unrolls.arguments(8, 2, 4, 3, 4, seed=9))
    unrolls.results(run, unrolls.arguments(8, 2, 4, 3, 4, seed=9))  # leaves its own steps 6 to 8 in the buffers
    actual = unrolls.results(run, exact)
    for i in (*range(4), 4, 5, 6, 7):  # h, z, q, c and the gradients of gx, qb and the state; weights add up T terms
        assert torch.equal(expected[i], actual[i])
    unrolls.assert_close(expected, actual, 1e-14)


@pytest.mark.parametrize("steps", [5, 8, 41])
def test_whether_it_was_recorded_changes_no_bit(steps):
    run, recorder = recorded()
    given = unrolls.arguments(steps, 2, 4, 3, 4)
    once, again = unrolls.results(run, given), unrolls.results(run, given)
    assert recorder.made == 2
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_float32_and_narrow_operands():
    for operand, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-6)):
        run, recorder = recorded()
        given = unrolls.arguments(11, 3, 8, 4, 6, dtype=torch.float32, operand=operand)
        expected = unrolls.results(manual_backward.unroll, given)
        unrolls.results(run, given)
        unrolls.assert_close(expected[:8], unrolls.results(run, given)[:8], tolerance)
        assert recorder.made == 2


def test_weights_may_be_another_tensor_at_every_call():
    run, recorder = recorded()
    for seed in range(4):
        given = unrolls.arguments(6, 2, 4, 2, 3, seed=seed)
        unrolls.assert_close(unrolls.results(reference, given), unrolls.results(run, given), 1e-12)
    assert recorder.made == 2


def test_what_was_given_out_is_not_overwritten_by_the_next_replay():
    run, _ = recorded()
    first = unrolls.arguments(6, 2, 4, 2, 3, seed=1)
    unrolls.results(run, first)
    kept = unrolls.results(run, first)
    copies = [k.clone() for k in kept]
    unrolls.results(run, unrolls.arguments(6, 2, 4, 2, 3, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_two_forward_passes_before_their_backward_passes():
    run, recorder = recorded()
    one, two = (unrolls.arguments(6, 2, 4, 2, 3, seed=s) for s in (1, 2))
    for _ in range(3):
        first, second = run(one), run(two)
        for outputs, inputs in ((first, one), (second, two)):  # the older first: it must find its own activations
            leaves = [a for a in inputs[:-2] if a.requires_grad]
            gradients = torch.autograd.grad(unrolls.mixed(outputs), leaves)
            unrolls.assert_close(unrolls.results(reference, inputs), [*outputs, *gradients], 1e-12)
    assert recorder.made == 4, "two recordings of both passes"


def test_a_forward_pass_that_is_thrown_away_frees_its_recording():
    run, recorder = recorded()
    given = unrolls.arguments(6, 2, 4, 2, 3)
    for _ in range(5):
        run(given)
        gc.collect()
    assert recorder.made == 2
    with torch.no_grad():
        unrolls.assert_close(reference(given), run(given), 1e-12)
    assert recorder.made == 2


def test_products_read_aligned_copies_whether_it_was_recorded_or_not():
    """Under ZeRO weights are views of one flat buffer, and a product may depend on where its operands begin."""
    seen = []

    class Watched(BPTT):
        @staticmethod
        def forward(ctx, *given):
            seen.append([t.data_ptr() for t in given[:-2]])
            return BPTT.forward(ctx, *given)

    run = Graphs(Loop(Watched, timed=3, idle=idle_row), Recorder(), math.inf)
    given = unrolls.arguments(8, 2, 4, 2, 3, dtype=torch.float32)
    flat = torch.cat([torch.zeros(1), *(w.detach().flatten() for w in given[5:10])])
    views, at = [], 1
    for weight in given[5:10]:
        views.append(flat[at : at + weight.numel()].view(weight.shape).requires_grad_())
        at += weight.numel()
    given = Core(*given[:5], *views, *given[10:])
    assert any(view.data_ptr() % 64 for view in views)
    once, again = unrolls.results(run, given), unrolls.results(run, given)
    assert len(seen) >= 2 and all(pointer % 64 == 0 for pointers in seen for pointer in pointers)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_backward_twice_repeats_or_says_that_it_cannot():
    run, _ = recorded()
    given = unrolls.arguments(6, 2, 4, 2, 3)
    unrolls.results(run, given)
    loss = unrolls.mixed(run(given))
    once = torch.autograd.grad(loss, given[0], retain_graph=True)[0]
    assert torch.equal(once, torch.autograd.grad(loss, given[0], retain_graph=True)[0])
    unrolls.results(run, unrolls.arguments(6, 2, 4, 2, 3, seed=5))
    with pytest.raises(RuntimeError, match=r"recurrence = graph: backward a second time.*use bptt"):
        torch.autograd.grad(loss, given[0])


@pytest.mark.parametrize("used", range(4))
def test_any_output_may_go_unused(used):
    run, _ = recorded()
    given = unrolls.arguments(6, 2, 4, 2, 3)
    leaves = [a for a in given[:-2] if a.requires_grad]
    for _ in range(2):
        gradients = [
            torch.autograd.grad(f(given)[used].square().sum(), leaves, allow_unused=True) for f in (reference, run)
        ]
    expected = [torch.zeros_like(b) if a is None else a for a, b in zip(*gradients, strict=True)]
    unrolls.assert_close(expected, gradients[1], 1e-12)


def test_a_nan_comes_out_and_does_not_stay():
    run, _ = recorded()
    good, bad = unrolls.arguments(6, 2, 4, 2, 3), unrolls.arguments(6, 2, 4, 2, 3)
    with torch.no_grad():
        bad[0][2, 0, 0] = torch.nan
    unrolls.results(run, good)
    assert unrolls.results(run, bad)[0].isnan().any()
    unrolls.assert_close(unrolls.results(reference, good), unrolls.results(run, good), 1e-12)


def test_gradcheck_of_a_replay():
    run, _ = recorded()
    given = unrolls.arguments(3, 2, 3, 2, 3, bound=1.0, scale=1.0)
    unrolls.results(run, given)

    def function(*leaves):
        values = iter(leaves)
        return run(Core(*(next(values) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in given)))

    leaves = [a for a in given[:-2] if a.requires_grad]
    assert torch.autograd.gradcheck(function, leaves)


def test_chosen_on_a_gpu_only_if_asked_for():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for wanted in ("graph", "triton"):
        assert choose(wanted, gpu, torch.float32, torch.bfloat16) == wanted
        assert choose(wanted, cpu, torch.float32, torch.float32) == choose("auto", cpu, torch.float32, torch.float32)
    assert choose("auto", gpu, torch.float32, torch.bfloat16) == "bptt"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("fused", [False, True])
def test_recorded_on_a_gpu(fused):
    pytest.importorskip("triton")
    run = cuda_graphs.unroll_fused if fused else cuda_graphs.unroll
    for operand, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for seed in range(4):
            for steps in (37, 40):
                sizes = {"dtype": torch.float32, "operand": operand, "seed": seed, "scale": 0.1}
                given = unrolls.arguments(steps, 8, 64, 16, 32, device="cuda", **sizes)
                exact = unrolls.arguments(steps, 8, 64, 16, 32, **(sizes | {"operand": torch.float32}))
                actual = [r.cpu() for r in unrolls.results(run, given)]
                unrolls.assert_close(unrolls.results(reference, exact), actual, tolerance)
