"""The fused kernels against the reference: on a GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter runs the same source program by program, in numpy: it shows that formulas, masks and strides are right,
and nothing about speed, or about what a compiler or a GPU does with them.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import unrolls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import interpreted

from zfdist.model.kernels import triton_recurrence
from zfdist.model.kernels.core_arguments import Core
from zfdist.model.kernels.lstm_cell import State, cell
from zfdist.model.kernels.mixed_precision import linear
from zfdist.model.recurrent.recurrence import reference

pytest.importorskip("triton", reason="Triton is not installed: pip install the version that torch names")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Clamp, scale of the weights and the most steps: with wide weights and no clamp sigma = exp(v / 2), and rounding with
# it, grows from step to step beyond any bound. Largest errors in 1,200 cases each: 8e-15, 2e-13 (0.7) and 2e-12 (8.0).
REGIMES = [
    (0.0, 0.3, 4), (0.0, 0.5, 4), (0.0, 1.5, 1), (0.7, 0.3, 4), (0.7, 0.5, 4), (0.7, 1.5, 4), (8.0, 0.3, 4),
    (8.0, 0.5, 4), (8.0, 1.5, 2),
]  # fmt: skip
SLOW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    with interpreted():
        import zfdist.model.kernels.triton_kernels  # noqa: F401

        yield


def arguments(*sizes, **options):
    return unrolls.arguments(*sizes, device=DEVICE, **options)


@SLOW
@given(
    steps=st.integers(1, 4), batch=st.integers(1, 3), hidden=st.integers(1, 9), z_dim=st.integers(1, 5),
    mlp_dim=st.integers(1, 7), regime=st.sampled_from(REGIMES), seed=st.integers(0, 1000),
)  # fmt: skip
def test_equals_the_reference_in_float64(steps, batch, hidden, z_dim, mlp_dim, regime, seed):
    bound, scale, most = regime
    given = arguments(min(steps, most), batch, hidden, z_dim, mlp_dim, bound=bound, scale=scale, seed=seed)
    unrolls.assert_close(unrolls.results(reference, given), unrolls.results(triton_recurrence.unroll, given), 1e-11)


@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 9, 5), (2, 300, 7)])
def test_a_step_of_generation_equals_that_of_the_reference(operand, sizes):
    batch, hidden, z_dim = sizes
    gx, _, z, h, c, w_h, w_z, *_ = arguments(1, batch, hidden, z_dim, 2, scale=0.5, dtype=torch.float32)
    wide, given = State(h, c), [t.clone() for t in (gx, z, h, c)]
    with torch.no_grad():
        step = triton_recurrence.stepping(w_h, w_z, operand)
        got = step(gx[0], z[0], step(gx[0], z[0], wide))
        for _ in range(2):
            wide = cell(gx[0] + linear(wide.h_BH, w_h, operand) + linear(z[0], w_z, operand), wide.c_BH)
    for a, b in zip(got, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if operand == torch.bfloat16 else 1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(given, (gx, z, h, c), strict=True))


def test_rows_wider_than_one_block():
    given = arguments(2, 2, 300, 260, 257, scale=0.05)
    unrolls.assert_close(unrolls.results(reference, given), unrolls.results(triton_recurrence.unroll, given), 1e-12)


@pytest.mark.parametrize("bound", [0.0, 0.7])
def test_equals_the_reference_in_float32(bound):
    given = arguments(12, 3, 8, 4, 6, bound=bound, dtype=torch.float32)
    unrolls.assert_close(unrolls.results(reference, given), unrolls.results(triton_recurrence.unroll, given), 1e-5)


def test_the_clips_of_these_cases_do_bite():
    given = arguments(4, 3, 8, 4, 6, bound=0.7, scale=0.5)
    q_TBQ = triton_recurrence.unroll(given)[2]
    assert 0.1 < (q_TBQ.abs() == 0.7).double().mean() < 0.9


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float16])
def test_narrow_operands_and_wide_sums(operand):
    given = arguments(10, 3, 16, 4, 8, scale=0.3, dtype=torch.float32, operand=operand)
    exact = unrolls.results(reference, arguments(10, 3, 16, 4, 8, scale=0.3))
    found = unrolls.results(triton_recurrence.unroll, given)
    assert all(r.dtype == torch.float32 for r in found)
    # The interpreter cuts to bfloat16 where a GPU rounds: twice the error.
    tolerance = 2e-2 if operand == torch.bfloat16 else 1e-3
    unrolls.assert_close(exact, [r.double() for r in found], tolerance)
    assert not torch.equal(found[0], triton_recurrence.unroll(given._replace(operand=torch.float32))[0])


def test_a_nan_is_never_clamped_away():
    for position, expected in ((0, "h"), (1, "hzq")):
        given = arguments(3, 2, 4, 2, 3, bound=0.5)
        with torch.no_grad():
            given[position][1, 0] = torch.nan
        outputs = dict(zip("hzqc", triton_recurrence.unroll(given), strict=True))
        assert all(outputs[name][1, 0].isnan().any() for name in expected)
        assert not any(outputs[name][:, 1].isnan().any() for name in "hzq"), "another row of the batch"


def test_gradients_that_are_expanded_or_strided_are_read_right():
    given = arguments(3, 2, 4, 2, 3)
    leaves = [a for a in given[:-2] if a.requires_grad]
    for loss in (lambda h, z, q, c: h.sum() + z.mT.sin().sum(), lambda h, z, q, c: q.sum() + c.T.square().sum()):
        gradients = [
            torch.autograd.grad(loss(*f(given)), leaves, allow_unused=True)
            for f in (reference, triton_recurrence.unroll)
        ]
        expected = [torch.zeros_like(b) if a is None else a for a, b in zip(*gradients, strict=True)]
        unrolls.assert_close(expected, gradients[1], 1e-12)


def test_inputs_that_are_strided_are_read_right():
    given = arguments(3, 2, 4, 2, 3)
    strided = [a.detach().mT.contiguous().mT.requires_grad_(a.requires_grad) for a in given[:9]]
    unrolls.assert_close(
        unrolls.results(reference, given), unrolls.results(triton_recurrence.unroll, Core(*strided, *given[9:])), 1e-12
    )


def test_it_serves_a_gpu_only_and_is_imported_by_nobody_else():
    assert not triton_recurrence.is_supported(torch.device("cpu"), torch.float32, torch.float32)
    assert triton_recurrence.is_supported(torch.device("cuda"), torch.float32, torch.bfloat16)
    assert not triton_recurrence.is_supported(torch.device("cuda"), torch.float64, torch.bfloat16)
    code = "import sys, zfdist.train, zfdist.model.kernels.triton_recurrence; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
