"""An implementation of a loop is taken for right only if it is, in outputs, gradients, bits, and also later on."""

import bad_loops
import pytest
import torch

from zfdist.model.recurrent.loop_trial import (
    MOST_ERROR,
    MOST_STEPS,
    LoopCase,
    by_turns,
    case_of,
    exact,
    example,
    loops_of,
    tried,
)
from zfdist.model.recurrent.recurrence import found
from zfdist.model.systems import build
from zfdist.model_config import ModelConfig

CPU = torch.device("cpu")
CASES = {
    "recurrence": LoopCase("recurrence", 24, 6, 10, 8.0, 12, 5, "fp32"),
    "chain": LoopCase("chain", 0, 6, 10, 8.0, 12, 5, "fp32"),
}


def trial_of(case, run, name="it"):
    arguments = example(case, CPU)
    return tried(case, name, run, arguments, exact(case, arguments))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loop", CASES)
def test_all_that_serve_are_right_with_room_to_spare(loop, precision):
    case = CASES[loop]._replace(precision=precision)
    names = ("reference", "bptt", "native") if precision == "fp32" else ("reference", "bptt")
    for name in names:
        trial = trial_of(case, found(loops_of(case)[name]), name)
        assert trial.problem is None and trial.seconds > 0 and trial.error < MOST_ERROR[precision] / 3, trial


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("not_finite", "gives numbers that are not finite"),
        ("wrong_gradient", "gives wrong numbers (relative error 1.0e-01)"),
        ("wrong_later", "gives wrong numbers"),
        ("other_bits", "gives other bits each time"),
    ],
)  # fmt: skip
def test_one_that_lies_is_out_with_its_reason(bad, problem, monkeypatch):
    monkeypatch.setattr(bad_loops, "_calls", 0)
    trial = trial_of(CASES["recurrence"], getattr(bad_loops, bad))
    assert trial.seconds is None and trial.problem.startswith(problem)


def test_operands_of_16_bits_are_no_fp32():
    """What rounds although nobody asked for it is wrong, and at its own precision right."""
    case = CASES["recurrence"]._replace(hidden=128, z_dim=32, mlp_dim=64)
    rounding = lambda core: found(loops_of(case)["bptt"])(core._replace(operand=torch.bfloat16))  # noqa: E731
    assert "wrong numbers" in trial_of(case, rounding).problem
    assert trial_of(case._replace(precision="bf16"), rounding).problem is None


def test_the_case_of_a_network_has_its_sizes_and_arguments_their_shapes():
    module = build(ModelConfig(hidden=20, z_dim=3, mlp_dim=7, latent_clamp=5.0), 8, 0)
    case = case_of(module.recurrence, steps=9, batch=2, precision="fp32")
    assert case == LoopCase("recurrence", 20, 3, 7, 5.0, 9, 2, "fp32")
    for name, argument in example(case, CPU)._asdict().items():
        if name.startswith("w_") or name.startswith("b_"):
            assert argument.shape == getattr(module.recurrence, name).shape
    chain = build(ModelConfig(system="srnn", hidden=20, z_dim=3, mlp_dim=7), 8, 0).chain
    case = case_of(chain, steps=10_000, batch=2, precision="bf16")
    assert case == LoopCase("chain", 0, 3, 7, 8.0, MOST_STEPS, 2, "bf16")
    shapes = {name: a.shape for name, a in example(case, CPU)._asdict().items() if name.startswith(("w_", "b_"))}
    assert shapes == {name: weight.shape for name, weight in chain.named_parameters()}


def test_by_turns_all_are_called_equally_often_and_a_slow_one_shows():
    case, calls = CASES["recurrence"], []
    fast = found(loops_of(case)["bptt"])

    def slow(core):
        calls.append("slow")
        for _ in range(9):
            fast(core)
        return fast(core)

    def counted(core):
        calls.append("fast")
        return fast(core)

    seconds = by_turns({"slow": slow, "fast": counted}, example(case, CPU), 120.0)
    assert calls == ["slow", "fast"] * 20 and seconds["slow"] > seconds["fast"] > 0
    assert by_turns({"slow": slow, "fast": counted}, example(case, CPU), 0.0).keys() == {"slow"}
