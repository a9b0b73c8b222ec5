"""One implementation of a loop over time, tried on a run's shapes: is it right, and how long does it take?

Right is what gives outputs and gradients as near to those of `reference` in float64 as the precision allows, and the
same bits each time: a loop that is recorded runs as it comes at first, and replays later. Time is that of a forward and
a backward pass. The loops are those of zfdist.model.recurrent.recurrence and .latent_chain.

Shapes: as in zfdist.model.kernels.core_arguments.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.core_arguments import ChainCore, Core
from zfdist.model.kernels.lstm_cell import GATES
from zfdist.model.kernels.mixed_precision import OPERANDS
from zfdist.model.recurrent import latent_chain, recurrence
from zfdist.model.recurrent.latent_chain import LatentChain
from zfdist.model.recurrent.recurrence import Recurrence

MOST_ERROR = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}
"""Largest relative error of an output or gradient against float64, by precision: some ten times that of `reference`."""
MOST_STEPS = 256
"""Longer loops are tried at this length: their time is proportional, their rounding errors are not."""
_CHECKS = 3  # what is recorded runs as it comes, then is recorded, then replayed
_MOST_TURNS = 20


class LoopCase(NamedTuple):
    """The loop of a run, and all that its time depends on, but for the machine."""

    loop: Literal["recurrence", "chain"]
    hidden: int
    """0 in a chain, which has no such units."""
    z_dim: int
    mlp_dim: int
    bound: float
    """Clamps means and log-variances; 0 for no clamp."""
    steps: int
    batch: int
    precision: str
    """fp32, tf32, bf16 or fp16."""


class Trial(NamedTuple):
    """What came of one implementation."""

    name: str
    seconds: float | None = None
    """Of a forward and a backward pass, the least disturbed of some; None if it is out of the question."""
    error: float | None = None
    """Largest relative error of an output or gradient."""
    problem: str | None = None
    """Why it is out of the question; None if it is right."""
    may_change: bool = False
    """Whether another try may end otherwise: the time was over, or others held the memory."""


def case_of(part: Recurrence | LatentChain, *, steps: int, batch: int, precision: str) -> LoopCase:
    """Return the case of a network's loop on sequences of so many steps."""
    steps = min(steps, MOST_STEPS)
    if isinstance(part, Recurrence):
        (mlp_dim, hidden), z_dim = part.w_a_MH.shape, part.w_z_GZ.shape[1]
        return LoopCase("recurrence", hidden, z_dim, mlp_dim, part.latent_clamp, steps, batch, precision)
    z_dim, mlp_dim = part.w_z_PZ.shape[1], part.w_q_2QM.shape[2]
    return LoopCase("chain", 0, z_dim, mlp_dim, part.latent_clamp, steps, batch, precision)


def loops_of(case: LoopCase) -> Mapping[str, str]:
    """Return the implementations of a case's loop: where each is, by name."""
    return recurrence.LOOPS if case.loop == "recurrence" else latent_chain.LOOPS


def example(case: LoopCase, device: torch.device) -> Core | ChainCore:
    """Return arguments of a case's shapes: states, noise and weights of the size that they have in a new network."""
    draw, operand = torch.Generator().manual_seed(0), OPERANDS[case.precision]

    def normal(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(shape, generator=draw) / math.sqrt(3 * fan_in if fan_in > 1 else 1)).to(device)

    _, hidden, z_dim, mlp_dim, bound, steps, batch, _ = case
    eps_TBZ = normal(steps, batch, z_dim)
    if case.loop == "chain":
        weights = (normal(2 * mlp_dim, z_dim, fan_in=z_dim), normal(2, 2 * z_dim, mlp_dim, fan_in=mlp_dim))
        biases = normal(2, 2 * z_dim, fan_in=mlp_dim)
        pq_TBP, z_BZ = normal(steps, batch, 2 * mlp_dim), normal(batch, z_dim)
        return ChainCore(pq_TBP, eps_TBZ, z_BZ, *weights, biases, bound, operand)
    gates = GATES * hidden
    return Core(
        normal(steps, batch, gates), normal(steps, batch, mlp_dim), eps_TBZ,
        normal(batch, hidden), normal(batch, hidden),
        normal(gates, hidden, fan_in=hidden), normal(gates, z_dim, fan_in=hidden),
        normal(mlp_dim, hidden, fan_in=hidden), normal(2 * z_dim, mlp_dim, fan_in=mlp_dim),
        normal(2 * z_dim, fan_in=mlp_dim), bound, operand,
    )  # fmt: skip


def exact(case: LoopCase, arguments: Core | ChainCore) -> list[Tensor]:
    """Return outputs and gradients of `reference` in float64."""
    wide: dict[str, Any] = {name: a.double() for name, a in arguments._asdict().items() if isinstance(a, Tensor)}
    reference = recurrence.found(loops_of(case)["reference"])
    return results(reference, arguments._replace(**wide, operand=torch.float64))


def results(run: Callable[[Any], tuple[Tensor, ...]], arguments: Core | ChainCore) -> list[Tensor]:
    """Return the outputs of a loop, and the gradients of a mix of them in all that it is given but the noise."""
    tensors: dict[str, Any] = {n: a.detach() for n, a in arguments._asdict().items() if isinstance(a, Tensor)}
    leaves = [tensor.requires_grad_() for name, tensor in tensors.items() if name != "eps_TBZ"]
    outputs = run(arguments._replace(**tensors))
    draw = torch.Generator().manual_seed(1)
    mix = [torch.randn(o.shape, generator=draw).to(o) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, mix)]


def tried(
    case: LoopCase, name: str, run: Callable[[Any], tuple[Tensor, ...]],
    arguments: Core | ChainCore, wanted: Sequence[Tensor],
) -> Trial:  # fmt: skip
    """Try an implementation against the numbers of `exact`."""
    error, first, seconds = 0.0, None, math.inf
    for _ in range(_CHECKS):
        got, spent_s = _timed(run, arguments)
        seconds = min(seconds, spent_s)
        if not all(bool(torch.isfinite(g).all()) for g in got):
            return Trial(name, problem="gives numbers that are not finite")
        error = max(error, *(_relative(g, w) for g, w in zip(got, wanted, strict=True)))
        if not error <= MOST_ERROR[case.precision]:
            return Trial(name, error=error, problem=f"gives wrong numbers (relative error {error:.1e})")
        if first is not None and not all(torch.equal(a, b) for a, b in zip(first, got, strict=True)):
            return Trial(name, error=error, problem="gives other bits each time")
        first = got
    return Trial(name, seconds, error)


def by_turns(
    runs: Mapping[str, Callable[[Any], tuple[Tensor, ...]]], arguments: Core | ChainCore, limit_s: float
) -> dict[str, float]:
    """Return the seconds of several, the least disturbed call of each, as often as fits, twenty times at most.

    They take turns, so that what else the machine does disturbs all alike.
    """
    found, started_s = dict.fromkeys(runs, math.inf), time.perf_counter()
    for _ in range(_MOST_TURNS):
        for name, run in runs.items():
            found[name] = min(found[name], _timed(run, arguments)[1])
            if time.perf_counter() - started_s > limit_s:
                return {name: seconds for name, seconds in found.items() if seconds < math.inf}
    return found


def _timed(run: Callable[[Any], tuple[Tensor, ...]], arguments: Core | ChainCore) -> tuple[list[Tensor], float]:
    _wait(arguments[0].device)
    started_s = time.perf_counter()
    got = results(run, arguments)
    _wait(arguments[0].device)
    return got, time.perf_counter() - started_s


def _relative(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
