"""What the engine trains with is the paper's Adam: its weights are those of plain torch, on any stage and worker."""

import itertools
from typing import Any

import harness
import pytest
import torch

from zfdist.config import EngineConfig, ModelConfig, OptimConfig
from zfdist.model.networks.network import Network
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.schedule import Weights, learning_rate

T, B, X, Z, UPDATES = 6, 8, 5, 3, 12
MODEL = ModelConfig(hidden=8, z_dim=Z, mlp_dim=7)
# Nothing at its default, a learning rate that changes, and a norm that some updates exceed and others do not.
OPTIM = OptimConfig(learning_rate=3e-3, warmup_steps=5, beta1=0.85, beta2=0.98, adam_eps=1e-4, clip_norm=3.1)
WEIGHTS = Weights(kl=0.5, alpha=0.0, beta=0.2, free_nats_per_frame=0.0)  # alpha's net never gets a gradient
STAGES, MICRO_BATCHES, WORKERS = (0, 1, 2, 3), (1, 2), (1, 2)
NEAR = 1e-6

Trained = dict[str, torch.Tensor]


def loss(model: Any, update: int, rows: slice) -> torch.Tensor:
    """Return the share that some rows have in the loss of an update's batch."""
    generator = torch.Generator().manual_seed(update)
    frames_TBX, eps_TBZ = (torch.randn(n, B, d, generator=generator) for n, d in ((T + 1, X), (T, Z)))
    lengths_B = torch.randint(1, T + 1, (B,), generator=generator)[rows]
    terms = model(frames_TBX[:-1, rows], frames_TBX[1:, rows], lengths_B, eps_TBZ[:, rows])
    return objective(terms, torch.arange(T)[:, None] < lengths_B, WEIGHTS, B).total


def through_the_engine(cases: list[tuple[int, int]]) -> list[Trained | None]:
    from zfdist import engine, world

    here, trained = world.connect(), []
    for stage, micro_batches in cases:
        config = EngineConfig(zero_stage=stage, precision="fp32", accumulation_steps=micro_batches)
        shard = engine.Engine(build(MODEL, X, seed=0), config, OPTIM, here)
        parts = here.size * micro_batches
        for update, part in itertools.product(range(UPDATES), range(micro_batches)):
            shard.backward(loss(shard.forward, update, slice(here.rank * micro_batches + part, None, parts)))
            shard.step(learning_rate(OPTIM, update))
        trained.append(shard.weights())
        shard.close()
    return trained


def plain() -> tuple[Network, list[float]]:
    """Return what torch alone makes of it in one process, and the norms of the gradients."""
    model, norms = build(MODEL, X, seed=0), []
    betas = (OPTIM.beta1, OPTIM.beta2)
    adam = torch.optim.Adam(model.parameters(), betas=betas, eps=OPTIM.adam_eps, foreach=False)
    for update in range(UPDATES):
        for group in adam.param_groups:
            group["lr"] = learning_rate(OPTIM, update)
        adam.zero_grad()
        loss(model, update, slice(None)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)))
        adam.step()
    return model, norms


@pytest.fixture(scope="module")
def trained() -> dict[tuple[int, int, int], Trained]:
    """Weights by number of workers, stage and micro-batches."""
    cases = list(itertools.product(STAGES, MICRO_BATCHES))
    found = {size: harness.run_ranks(size, through_the_engine, cases)[0] for size in WORKERS}
    return {(size, *case): weights for size in WORKERS for case, weights in zip(cases, found[size], strict=True)}


@pytest.mark.parametrize("micro_batches", MICRO_BATCHES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", WORKERS)
def test_weights_are_those_of_torchs_adam(trained: Any, workers: int, stage: int, micro_batches: int) -> None:
    expected, actual = plain()[0].state_dict(), trained[workers, stage, micro_batches]
    assert actual.keys() == expected.keys()
    off = {name: float((actual[name] - expected[name]).abs().max()) for name in expected}
    worst = max(off, key=lambda name: off[name])
    assert off[worst] <= NEAR, f"{worst} is off by {off[worst]:.1e}"


def test_of_these_updates_some_are_clipped_and_all_that_can_move_do() -> None:
    model, norms = plain()
    assert 0 < sum(norm > OPTIM.clip_norm for norm in norms) < UPDATES
    start = build(MODEL, X, seed=0).state_dict()
    still = {name for name, weight in model.state_dict().items() if torch.equal(weight, start[name])}
    assert still == {name for name in start if name.startswith("aux.")}
