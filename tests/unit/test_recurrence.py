"""Every implementation of the loop against autograd's, and all under autocast."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_zforcing import data, make
from unrolls import assert_any_output_may_go_unused

from zfdist.model.kernels import cpp_library
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.objective import objective
from zfdist.model.recurrent.recurrence import Recurrence
from zfdist.schedule import Weights

IMPLEMENTATIONS = ("reference", "bptt", "native")
BY_HAND = IMPLEMENTATIONS[1:]


class Case:
    """A recurrence with all its inputs; `scale` 3 makes the clips of a and the clamps of q bite."""

    def __init__(self, steps, batch, hidden, z_dim, mlp_dim, *, clamp=8.0, scale=1.0, dtype=torch.float64, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = Recurrence(hidden, z_dim, mlp_dim, clamp).to(dtype)
            with torch.no_grad():
                for parameter in self.module.parameters():
                    parameter.mul_(scale)
                self.module.b_q_Q.normal_(std=scale)

            def leaf(*shape, size=1.0):
                return (size * torch.randn(shape, dtype=dtype)).requires_grad_()

            self.gx, self.qb = leaf(steps, batch, 4 * hidden), leaf(steps, batch, mlp_dim, size=scale)
            self.eps = torch.randn(steps, batch, z_dim, dtype=dtype)
            self.state = State(leaf(batch, hidden), leaf(batch, hidden))
            self.mix = [torch.randn(shape, dtype=dtype) for shape in self._shapes(steps, batch, hidden, z_dim)]

    @staticmethod
    def _shapes(steps, batch, hidden, z_dim):
        latent = (steps, batch, z_dim)
        return [(steps, batch, hidden), latent, latent, latent, (batch, hidden), (batch, hidden)]

    def run(self, implementation):
        self.module.implementation = implementation
        unrolled = self.module(self.gx, self.qb, self.eps, self.state)
        return [*unrolled[:4], *unrolled.state]

    def leaves(self):
        return [self.gx, self.qb, *self.state, *self.module.parameters()]

    def outputs_and_gradients(self, implementation):
        outputs = self.run(implementation)
        scalar = sum((m * o.sin()).sum() for m, o in zip(self.mix, outputs, strict=True))
        return outputs, torch.autograd.grad(scalar, self.leaves())


def assert_agree(case, implementation, tolerance):
    (outputs, gradients), (others, other_gradients) = map(case.outputs_and_gradients, ("reference", implementation))
    for expected, actual in (*zip(outputs, others, strict=True), *zip(gradients, other_gradients, strict=True)):
        assert (expected - actual).norm() <= tolerance * expected.norm().clamp(min=1.0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", BY_HAND)
@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12), batch=st.integers(1, 21), hidden=st.integers(1, 40), z_dim=st.integers(1, 20),
    mlp_dim=st.integers(1, 30), clamp=st.sampled_from([0.0, 0.7, 8.0]), scale=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_equals_reference(implementation, steps, batch, hidden, z_dim, mlp_dim, clamp, scale, seed):
    case = Case(steps, batch, hidden, z_dim, mlp_dim, clamp=clamp, scale=scale, seed=seed)
    assert_agree(case, implementation, 1e-10)  # exp of an unbounded v makes many of few digits


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equals_reference_over_a_thousand_steps(implementation, scale):
    assert_agree(Case(1000, 3, 8, 4, 6, scale=scale), implementation, 1e-11)


@pytest.mark.parametrize("implementation", BY_HAND)
def test_equals_reference_where_a_weight_is_read_in_several_blocks(implementation):
    assert_agree(Case(2, 3, 530, 9, 520), implementation, 1e-11)


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_float32_is_as_near_to_float64_as_autograd_is(implementation, scale):
    exact, case = (Case(40, 8, 64, 16, 32, scale=scale, dtype=dtype) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        exact.module.load_state_dict(case.module.state_dict())
        for a, b in zip(exact.leaves()[:4], case.leaves()[:4], strict=True):
            a.copy_(b)
    exact.eps, exact.mix = case.eps.double(), [m.double() for m in case.mix]
    wanted = torch.cat([g.flatten() for g in exact.outputs_and_gradients("reference")[1]])
    errors = {}
    for name in ("reference", implementation):
        got = torch.cat([g.flatten() for g in case.outputs_and_gradients(name)[1]])
        errors[name] = float((got - wanted).norm() / wanted.norm())
    assert errors[implementation] < 4 * errors["reference"] < 1e-4  # rounding is a matter of luck at scale 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fifty_updates_give_the_same_losses_to_rounding(dtype):
    frames, lengths, eps = data(dtype=dtype)
    mask = torch.ones(eps.shape[:2], dtype=torch.bool)
    losses = {}
    for implementation in IMPLEMENTATIONS:
        model = make(dtype, recurrence=implementation)
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses[implementation] = []
        for _ in range(50):
            terms = model(frames[:-1], frames[1:], lengths, eps)
            loss = objective(terms, mask, Weights(kl=0.5, alpha=0.1, beta=0.1, free_nats_per_frame=0.0), 3).total
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses[implementation].append(loss.item())
    assert losses["reference"][-1] < 0.9 * losses["reference"][0]
    for implementation in BY_HAND:
        tolerance = 1e-9 if dtype == torch.float64 else 1e-3  # rounding grows over updates
        assert losses[implementation] == pytest.approx(losses["reference"], rel=tolerance)


@pytest.mark.parametrize("implementation", BY_HAND)
def test_without_a_gradient_the_numbers_are_the_same(implementation):
    case = Case(9, 5, 12, 4, 6, scale=2.0)
    expected = case.run(implementation)
    with torch.no_grad():
        for a, b in zip(expected, case.run(implementation), strict=True):
            assert torch.equal(a, b)


def test_native_is_bit_equal_on_every_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(cpp_library, "PER_THREAD", 1)  # as if it were worth while
    case, results = Case(6, 21, 30, 7, 11, dtype=torch.float32), []
    for count in (1, 2, 3):
        threads(count)
        results.append(case.run("native"))
    for outputs in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], outputs, strict=True))


def test_native_passes_infinities_and_nans_on():
    case = Case(3, 4, 5, 3, 4)
    with torch.no_grad():
        case.qb[1, 2, 0] = torch.nan
        case.gx[0, 1, 3] = torch.inf
    for expected, actual in zip(case.run("reference"), case.run("native"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_native_reads_inputs_that_are_not_dense():
    case = Case(4, 3, 5, 3, 4)
    expected = case.run("native")
    case.gx, case.qb = (torch.stack([v, v], dim=-1)[..., 0] for v in (case.gx, case.qb))
    case.eps = case.eps.transpose(0, 1).contiguous().transpose(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(expected, case.run("native"), strict=True))


def test_the_clips_of_these_cases_do_bite():
    case = Case(30, 3, 8, 4, 6, clamp=0.7, scale=3.0)
    *_, mu, logvar, _, _ = case.run("bptt")
    clamped = torch.cat([mu, logvar]).abs() == 0.7
    assert 0.1 < clamped.double().mean() < 0.9


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("clamp", [0.0, 1.0])
def test_passes_gradcheck(implementation, clamp):
    case = Case(3, 2, 3, 2, 3, clamp=clamp, scale=1.5)
    case.module.implementation = implementation

    def run(gx, qb, h, c, *weights):
        named = dict(zip(dict(case.module.named_parameters()), weights, strict=True))
        unrolled = torch.func.functional_call(case.module, named, (gx, qb, case.eps, State(h, c)))
        return *unrolled[:4], *unrolled.state

    assert torch.autograd.gradcheck(run, [leaf.detach().requires_grad_() for leaf in case.leaves()])


@pytest.mark.parametrize("used", range(6))
def test_any_output_may_go_unused(used):
    case = Case(4, 2, 5, 3, 4)
    assert_any_output_may_go_unused(case.run, case.leaves(), used)


@pytest.mark.parametrize("implementation", BY_HAND)
def test_the_gradients_that_it_is_given_stay_as_they_are(implementation):
    case = Case(4, 2, 5, 3, 4)
    outputs = case.run(implementation)
    kept = [m.clone() for m in case.mix]
    torch.autograd.grad(outputs, case.leaves(), case.mix)
    assert all(torch.equal(a, b) for a, b in zip(kept, case.mix, strict=True))


def test_one_step_is_the_formulas_of_the_paper():
    case = Case(1, 2, 3, 2, 4, clamp=0.5, scale=2.0)
    m, h, c = case.module, *case.state
    a = torch.nn.functional.leaky_relu(h @ m.w_a_MH.T + case.qb[0], 1 / 3).clamp(-3, 3)
    mu, logvar = (a @ m.w_q_QM.T + m.b_q_Q).clamp(-0.5, 0.5).chunk(2, dim=1)
    z = mu + (logvar / 2).exp() * case.eps[0]
    o, i, f, u = (case.gx[0] + h @ m.w_h_GH.T + z @ m.w_z_GZ.T).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * u.tanh()
    h = o.sigmoid() * c.tanh()
    for implementation in IMPLEMENTATIONS:
        got = case.run(implementation)
        for expected, actual in zip((h[None], z[None], mu[None], logvar[None], h, c), got, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
    stepped = m.step(case.gx[0], z, case.state)
    torch.testing.assert_close(stepped.h_BH, h)
    torch.testing.assert_close(stepped.c_BH, c)


@pytest.mark.parametrize("implementation", BY_HAND)
def test_two_halves_equal_the_whole(implementation):
    case = Case(7, 2, 5, 3, 4)
    whole = case.run(implementation)
    first = case.module(case.gx[:3], case.qb[:3], case.eps[:3], case.state)
    second = case.module(case.gx[3:], case.qb[3:], case.eps[3:], first.state)
    torch.testing.assert_close(torch.cat([first.h_TBH, second.h_TBH]), whole[0])
    torch.testing.assert_close(second.state.c_BH, whole[5])


def test_auto_takes_the_fastest_that_can_serve():
    case = Case(3, 2, 4, 2, 3)
    assert "Native" in type(case.run("auto")[0].grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        narrow = Case(3, 2, 4, 2, 3, dtype=torch.float32)
        assert "BPTT" in type(narrow.run("auto")[0].grad_fn).__name__
    case.eps.requires_grad_()
    assert torch.autograd.grad(case.run("auto")[0].sum(), case.eps)[0].abs().sum() > 0


def test_without_a_compiler_auto_is_bptt(monkeypatch, capsys):
    cpp_library.library.cache_clear()
    monkeypatch.setattr(cpp_library, "COMPILERS", ("no-such-compiler",))
    case = Case(3, 2, 4, 2, 3)
    assert "BPTT" in type(case.run("auto")[0].grad_fn).__name__
    assert "no C++ compiler found (no-such-compiler)" in cpp_library.unsupported_reason(
        case.gx.device, case.gx.dtype, case.gx.dtype
    )
    cpp_library.library.cache_clear()


def test_differentiating_by_hand_twice_is_refused_and_reference_does_it():
    case = Case(3, 2, 4, 2, 3)
    for implementation in IMPLEMENTATIONS:
        loss = case.run(implementation)[0].square().sum()
        (first,) = torch.autograd.grad(loss, case.gx, create_graph=True)
        if implementation in BY_HAND:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                first.sum().backward()
        else:
            assert torch.autograd.grad(first.sum(), case.gx)[0].abs().sum() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_autocast_only_operands_are_narrow(implementation):
    case = Case(20, 4, 32, 8, 16, dtype=torch.float32)
    exact_outputs, exact_gradients = case.outputs_and_gradients(implementation)
    with torch.autocast("cpu", torch.bfloat16):
        case.gx, case.qb = (t.detach().requires_grad_() for t in (case.gx, case.qb))
        outputs = case.run(implementation)
    scalar = sum((m * o.sin()).sum() for m, o in zip(case.mix, outputs, strict=True))
    gradients = torch.autograd.grad(scalar, case.leaves())
    assert all(o.dtype == torch.float32 for o in outputs)
    assert all(g.dtype == torch.float32 for g in gradients)
    assert not torch.equal(outputs[0], exact_outputs[0])
    for expected, actual in zip(exact_gradients, gradients, strict=True):
        assert (expected - actual).norm() < 0.007 * expected.norm()  # 0.009 if results of products were rounded too


def test_narrow_inputs_are_widened():
    case = Case(5, 2, 8, 4, 4, dtype=torch.float32)
    case.module.implementation = "bptt"
    unrolled = case.module(case.gx.bfloat16(), case.qb.bfloat16(), case.eps, case.state)
    assert unrolled.h_TBH.dtype == unrolled.logvar_TBZ.dtype == unrolled.state.c_BH.dtype == torch.float32


def test_recurrent_weights_begin_orthogonal():
    for gate in Case(1, 1, 6, 2, 3).module.w_h_GH.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
