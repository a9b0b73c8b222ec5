"""The hand-written backward pass against autograd, and both under autocast."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.model.cell import State
from zfdist.model.recurrence import Recurrence

IMPLEMENTATIONS = ("reference", "bptt")


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


def assert_agree(case, tolerance):
    outputs, gradients = zip(*(case.outputs_and_gradients(i) for i in IMPLEMENTATIONS), strict=True)
    for expected, actual in (*zip(*outputs, strict=True), *zip(*gradients, strict=True)):
        assert (expected - actual).norm() <= tolerance * expected.norm().clamp(min=1.0)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 12), batch=st.integers(1, 4), hidden=st.integers(1, 9), z_dim=st.integers(1, 5),
    mlp_dim=st.integers(1, 7), clamp=st.sampled_from([0.0, 0.7, 8.0]), scale=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_bptt_equals_reference(steps, batch, hidden, z_dim, mlp_dim, clamp, scale, seed):
    assert_agree(Case(steps, batch, hidden, z_dim, mlp_dim, clamp=clamp, scale=scale, seed=seed), 1e-12)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bptt_equals_reference_over_hundreds_of_steps(scale):
    assert_agree(Case(300, 3, 8, 4, 6, scale=scale), 1e-12)


def test_the_clips_of_these_cases_do_bite():
    case = Case(30, 3, 8, 4, 6, clamp=0.7, scale=3.0)
    *_, mu, logvar, _, _ = case.run("bptt")
    clamped = torch.cat([mu, logvar]).abs() == 0.7
    assert 0.1 < clamped.double().mean() < 0.9


@pytest.mark.parametrize("clamp", [0.0, 1.0])
def test_bptt_passes_gradcheck(clamp):
    case = Case(3, 2, 3, 2, 3, clamp=clamp, scale=1.5)
    case.module.implementation = "bptt"

    def run(gx, qb, h, c, *weights):
        named = dict(zip(dict(case.module.named_parameters()), weights, strict=True))
        unrolled = torch.func.functional_call(case.module, named, (gx, qb, case.eps, State(h, c)))
        return *unrolled[:4], *unrolled.state

    assert torch.autograd.gradcheck(run, [leaf.detach().requires_grad_() for leaf in case.leaves()])


@pytest.mark.parametrize("used", range(6))
def test_any_output_may_go_unused(used):
    case = Case(4, 2, 5, 3, 4)
    gradients = [
        torch.autograd.grad(case.run(i)[used].square().sum(), case.leaves(), allow_unused=True) for i in IMPLEMENTATIONS
    ]
    for expected, actual in zip(*gradients, strict=True):
        expected = torch.zeros_like(actual) if expected is None else expected
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_bptt_leaves_the_gradients_it_is_given_alone():
    case = Case(4, 2, 5, 3, 4)
    outputs = case.run("bptt")
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


def test_two_halves_equal_the_whole():
    case = Case(7, 2, 5, 3, 4)
    whole = case.run("bptt")
    first = case.module(case.gx[:3], case.qb[:3], case.eps[:3], case.state)
    second = case.module(case.gx[3:], case.qb[3:], case.eps[3:], first.state)
    torch.testing.assert_close(torch.cat([first.h_TBH, second.h_TBH]), whole[0])
    torch.testing.assert_close(second.state.c_BH, whole[5])


def test_auto_takes_the_reference_where_bptt_cannot_serve():
    case = Case(3, 2, 4, 2, 3)
    assert "BPTT" in type(case.run("auto")[0].grad_fn).__name__
    case.eps.requires_grad_()
    assert torch.autograd.grad(case.run("auto")[0].sum(), case.eps)[0].abs().sum() > 0


def test_differentiating_bptt_twice_is_refused_and_reference_does_it():
    case = Case(3, 2, 4, 2, 3)
    for implementation in IMPLEMENTATIONS:
        loss = case.run(implementation)[0].square().sum()
        (first,) = torch.autograd.grad(loss, case.gx, create_graph=True)
        if implementation == "bptt":
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
        assert (expected - actual).norm() < 0.02 * expected.norm()


def test_narrow_inputs_are_widened():
    case = Case(5, 2, 8, 4, 4, dtype=torch.float32)
    case.module.implementation = "bptt"
    unrolled = case.module(case.gx.bfloat16(), case.qb.bfloat16(), case.eps, case.state)
    assert unrolled.h_TBH.dtype == unrolled.logvar_TBZ.dtype == unrolled.state.c_BH.dtype == torch.float32


def test_recurrent_weights_begin_orthogonal():
    for gate in Case(1, 1, 6, 2, 3).module.w_h_GH.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
