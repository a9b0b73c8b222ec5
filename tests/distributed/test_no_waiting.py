"""An update under ZeRO 0 reads no number back, also where it is skipped: who wants to know asks later."""

from typing import Any, NamedTuple

import harness
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zfdist.config import EngineConfig, OptimConfig

GRADIENTS = (1.0, 3.0, float("nan"), 2.0, float("inf"), 1.0)


class ReadBack(TorchDispatchMode):
    """Counts the numbers that are read, each of which would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"))
        return func(*args, **(kwargs or {}))


class Seen(NamedTuple):
    """Of all updates."""

    reads: list[int]
    norms: list[float]
    skipped: list[bool]
    weights: list[list[float]]
    steps: float


def updates() -> Seen:
    from zfdist.engine import Engine
    from zfdist.world import connect

    torch.manual_seed(0)
    engine = Engine(nn.Linear(4, 1, bias=False), EngineConfig(zero_stage=0), OptimConfig(clip_norm=5.0), connect())
    reads, told, weights = [], [], []
    for scale in GRADIENTS:
        with ReadBack() as mode:
            engine.backward(scale * engine.forward(torch.ones(2, 4)).sum())
            told.append(engine.step(0.1))
        reads.append(mode.count)
        weights.append(engine.weights()["weight"].flatten().tolist())
    found = [update() for update in told]  # all of them later, as the loop does for one
    (state,) = engine._engine.basic_optimizer.state.values()
    steps = float(state["step"])
    engine.close()
    return Seen(reads, [u.grad_norm for u in found], [u.skipped for u in found], weights, steps)


def test_nothing_is_read_and_what_is_not_finite_changes_nothing() -> None:
    seen = harness.run_ranks(1, updates)[0]
    assert seen.reads == [0] * len(GRADIENTS)
    assert seen.skipped == [False, False, True, False, True, False] and seen.steps == 4
    assert seen.norms[:2] == [4.0, 12.0] and seen.norms[3] == 8.0
    moved = [before != after for before, after in zip(seen.weights, seen.weights[1:], strict=False)]
    assert moved == [True, False, True, False, True]
