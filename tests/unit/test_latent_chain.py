"""The chain of SRNN's latents: its definition against the formulas, each implementation by hand against autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unrolls import assert_any_output_may_go_unused, assert_close, mixed

from zfdist.model.distributions import latent_gaussian
from zfdist.model.kernels import cpp_latent_chain, cpp_library
from zfdist.model.recurrent.latent_chain import LatentChain

IMPLEMENTATIONS = ("reference", "bptt", "native")
BY_HAND = IMPLEMENTATIONS[1:]


class Case:
    """A chain with all its inputs; `scale` 2 makes the clips of a and the clamps of q bite."""

    def __init__(self, steps, batch, z_dim, mlp_dim, clamp=8.0, scale=1.0, *, dtype=torch.float64, seed=0):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, dtype=torch.float64, generator=random).to(dtype)

        self.module = LatentChain(z_dim, mlp_dim, clamp).to(dtype)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(scale * normal(*parameter.shape) / parameter.shape[-1] ** 0.5)
        self.pd, self.qa = ((scale * normal(steps, batch, mlp_dim)).requires_grad_() for _ in range(2))
        self.eps, self.z = normal(steps, batch, z_dim), normal(batch, z_dim).requires_grad_()

    def run(self, implementation):
        self.module.implementation = implementation
        chain = self.module(self.pd, self.qa, self.eps, self.z)
        return [chain.z_TBZ, *chain.posterior, *chain.prior]

    def leaves(self):
        return [self.pd, self.qa, self.z, *self.module.parameters()]

    def outputs_and_gradients(self, implementation):
        outputs = self.run(implementation)
        return [*(o.detach() for o in outputs), *torch.autograd.grad(mixed(outputs), self.leaves())]


def as_written(case):
    """Run the chain one net and one step at a time."""
    module, z, drawn = case.module, case.z, []
    nets = list(zip(module.w_z_PZ.chunk(2), module.w_q_2QM, module.b_q_2Q, strict=True))

    def net(which, part):
        w_z, w_q, b_q = nets[which]
        numbers = torch.nn.functional.leaky_relu(part + z @ w_z.T, 1 / 3).clamp(-3, 3) @ w_q.T + b_q
        bound = module.latent_clamp or torch.inf
        return latent_gaussian(*numbers.clamp(-bound, bound).chunk(2, dim=-1))

    for pd, qa, eps in zip(case.pd, case.qa, case.eps, strict=True):
        prior, residual = net(0, pd), net(1, qa)
        posterior = residual._replace(mean=prior.mean + residual.mean)
        z = posterior.sample(eps)
        drawn.append([z, *posterior, *prior])
    outputs = [torch.stack(steps) for steps in zip(*drawn, strict=True)]
    return [*outputs, *torch.autograd.grad(mixed(outputs), case.leaves())]


# Clamp, scale and the most steps: with wide weights and no tight clamp gradients, and rounding, soon explode (to 3e7).
REGIMES = [
    (0.0, 0.3, 12), (0.0, 1.0, 12), (0.7, 0.3, 12), (0.7, 1.0, 12), (0.7, 2.0, 12), (8.0, 0.3, 12), (8.0, 1.0, 12),
    (8.0, 2.0, 3),
]  # fmt: skip
SHAPES = {
    "steps": st.integers(1, 12), "batch": st.integers(1, 21), "z_dim": st.integers(1, 12),
    "mlp_dim": st.integers(1, 20), "regime": st.sampled_from(REGIMES), "seed": st.integers(0, 1000),
}  # fmt: skip


def case_of(steps, batch, z_dim, mlp_dim, regime, seed):
    clamp, scale, most = regime
    return Case(min(steps, most), batch, z_dim, mlp_dim, clamp, scale, seed=seed)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_reference_is_the_chain_as_it_is_written(**shape):
    case = case_of(**shape)
    assert_close(as_written(case), case.outputs_and_gradients("reference"), 1e-9)


@pytest.mark.parametrize("implementation", BY_HAND)
@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_by_hand_equals_reference(implementation, **shape):
    case = case_of(**shape)
    assert_close(case.outputs_and_gradients("reference"), case.outputs_and_gradients(implementation), 1e-9)


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("shape", [(1000, 3, 4, 6), (2, 3, 520, 530)], ids=["many steps", "weights in several blocks"])
def test_by_hand_equals_reference_for_large_shapes(implementation, shape):
    case = Case(*shape, clamp=1.0)
    assert_close(case.outputs_and_gradients("reference"), case.outputs_and_gradients(implementation), 1e-11)


def test_the_clips_of_these_cases_do_bite():
    case = Case(30, 3, 4, 6, clamp=0.7, scale=2.0)
    *_, mean, log_std = case.run("bptt")
    clamped = torch.cat([mean.abs() == 0.7, log_std.abs() == 0.35])
    assert 0.1 < clamped.double().mean() < 0.9
    clipped = case.run("bptt")[0].grad_fn.saved_tensors[0].abs() == 3
    assert 0.1 < clipped.double().mean() < 0.9


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("clamp", [0.0, 1.0])
def test_passes_gradcheck(implementation, clamp):
    case = Case(3, 2, 2, 3, clamp=clamp)
    case.module.implementation = implementation

    def run(pd, qa, z, *weights):
        named = dict(zip(dict(case.module.named_parameters()), weights, strict=True))
        chain = torch.func.functional_call(case.module, named, (pd, qa, case.eps, z))
        return chain.z_TBZ, *chain.posterior, *chain.prior

    assert torch.autograd.gradcheck(run, [leaf.detach().requires_grad_() for leaf in case.leaves()])


@pytest.mark.parametrize("used", range(5))
def test_any_output_may_go_unused(used):
    case = Case(4, 2, 3, 4)
    assert_any_output_may_go_unused(case.run, case.leaves(), used)


@pytest.mark.parametrize("implementation", BY_HAND)
@pytest.mark.parametrize("clamp", [0.0, 8.0])
def test_the_gradients_that_it_is_given_stay_as_they_are(implementation, clamp):
    outputs = (case := Case(4, 2, 3, 4, clamp=clamp)).run(implementation)
    node, given_to_node = outputs[0].grad_fn, [torch.randn(4, 2, 3).double(), torch.randn(4, 2, 2, 6).double()]
    kept = [g.clone() for g in given_to_node]
    node.apply(*given_to_node)
    assert all(torch.equal(a, b) for a, b in zip(kept, given_to_node, strict=True))
    assert case.pd.grad is None


@pytest.mark.parametrize("implementation", BY_HAND)
def test_nan_and_infinity_are_passed_on(implementation):
    case = Case(4, 3, 2, 4)
    with torch.no_grad():
        case.qa[1, 2, 0], case.pd[0, 1, 3] = torch.nan, torch.inf
    expected, actual = case.outputs_and_gradients("reference"), case.outputs_and_gradients(implementation)
    for one, other in zip(expected[:5], actual[:5], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert expected[0][1:, 2].isnan().all() and not expected[0][:, :2].isnan().any()
    assert not any(g.isfinite().all() for g in actual[-3:])  # so that the check of the norm finds it in the weights


@pytest.mark.parametrize("implementation", BY_HAND)
def test_without_a_gradient_the_numbers_are_the_same(implementation):
    case = Case(9, 5, 4, 6, scale=2.0)
    expected = case.run(implementation)
    with torch.no_grad():
        assert_close(expected, case.run("auto"), 1e-13)
        assert all(torch.equal(a, b) for a, b in zip(expected, case.run(implementation), strict=True))


@pytest.mark.parametrize("implementation", BY_HAND)
def test_inputs_need_not_be_dense(implementation):
    case = Case(4, 3, 2, 4)
    expected = case.run(implementation)
    case.pd = torch.stack([case.pd, case.pd], dim=-1)[..., 0]
    case.eps = case.eps.transpose(0, 1).contiguous().transpose(0, 1)
    assert_close(expected, case.run(implementation), 1e-14)


@pytest.mark.parametrize("implementation", BY_HAND)
def test_noise_may_be_of_another_type(implementation):
    case = Case(4, 3, 2, 4)
    case.eps = case.eps.float()
    narrow = case.outputs_and_gradients(implementation)
    case.eps = case.eps.double()
    assert_close(case.outputs_and_gradients(implementation), narrow, 1e-14)


def test_native_is_bit_equal_on_every_number_of_threads(monkeypatch):
    case = Case(6, 21, 7, 30, clamp=1.0, dtype=torch.float32)

    def run(threads):
        monkeypatch.setattr(cpp_latent_chain, "threads_for", lambda work: threads)
        return case.outputs_and_gradients("native")

    expected, *others = map(run, (1, 2, 3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_float32_is_as_near_to_float64_as_autograd_is():
    case = Case(40, 8, 16, 32, clamp=2.0, dtype=torch.float32)
    exact = Case(40, 8, 16, 32, clamp=2.0)
    wanted = exact.outputs_and_gradients("reference")
    errors = {}
    for name in IMPLEMENTATIONS:
        got = case.outputs_and_gradients(name)
        errors[name] = max(float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True))
    assert max(errors[name] for name in BY_HAND) < 2 * errors["reference"] < 1e-4


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_autocast_only_operands_are_narrow(implementation):
    case = Case(20, 4, 8, 16, scale=0.5, dtype=torch.float32, seed=36)  # here no leaky ReLU falls on its other side
    exact = case.outputs_and_gradients(implementation)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = case.run(implementation)
    narrow = [*outputs, *torch.autograd.grad(mixed(outputs), case.leaves())]
    assert all(value.dtype == torch.float32 for value in narrow)
    assert not torch.equal(exact[0], narrow[0])
    assert_close(exact, narrow, 0.004)


def taken(case, implementation):
    """Return the name of what computes z."""
    return type(case.run(implementation)[0].grad_fn).__name__


def test_auto_takes_the_fastest_that_can_serve():
    case = Case(3, 2, 2, 3)
    for name in ("auto", "native", "graph"):
        assert "Native" in taken(case, name) and case.module.describe(torch.float64) == "native"
    assert "ByHand" in taken(case, "bptt") and case.module.describe(torch.float64) == "bptt"
    assert "Stack" in taken(case, "reference") and case.module.describe(torch.float64) == "reference"
    narrow = Case(3, 2, 2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert "ByHand" in taken(narrow, "auto")
    assert narrow.module.describe(torch.bfloat16).startswith("bptt (native: is for float32 and float64")
    case.eps.requires_grad_()
    assert torch.autograd.grad(case.run("auto")[0].sum(), case.eps)[0].abs().sum() > 0


def test_without_a_compiler_auto_is_by_hand_and_without_a_gradient_reference(monkeypatch):
    cpp_library.library.cache_clear()
    monkeypatch.setattr(cpp_library, "COMPILERS", ("no-such-compiler",))
    case = Case(3, 2, 2, 3)
    assert "ByHand" in taken(case, "auto")
    assert case.module.describe(torch.float64) == "bptt (native: no C++ compiler found (no-such-compiler))"
    expected = case.run("reference")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(expected, case.run("auto"), strict=True))
    cpp_library.library.cache_clear()


def test_under_a_compiler_of_torch_autograd_does_it(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "Stack" in taken(Case(3, 2, 2, 3), "auto")


@pytest.mark.parametrize("implementation", BY_HAND)
def test_differentiating_by_hand_twice_is_refused_and_reference_does_it(implementation):
    case = Case(3, 2, 2, 3)
    (first,) = torch.autograd.grad(case.run(implementation)[0].square().sum(), case.pd, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    (first,) = torch.autograd.grad(case.run("reference")[0].square().sum(), case.pd, create_graph=True)
    assert torch.autograd.grad(first.sum(), case.pd)[0].abs().sum() > 0


def test_a_step_of_generation_is_the_prior_of_the_chain():
    case = Case(1, 3, 2, 4, clamp=0.7, scale=2.0)
    for expected, actual in zip(case.run("reference")[-2:], case.module.step(case.pd[0], case.z), strict=True):
        torch.testing.assert_close(actual, expected[0])
