"""Every system under ZeRO 3 on two workers: the same updates as one worker without sharding."""

from typing import Any

import harness
import pytest
import torch

from zfdist.config import EngineConfig, ModelConfig, OptimConfig
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.schedule import Weights

T, B, X, Z, STEPS = 5, 4, 6, 3, 3
SIZES = {"hidden": 8, "z_dim": Z, "mlp_dim": 7}
TOKENS = {"density": "categorical", "embed_dim": 5}
CASES: dict[str, dict[str, Any]] = {
    "zforcing": {"embed_dim": 3, "embed_separate": True},
    "zforcing, all switches": {
        "aux_sees_h": True, "latent_sees_x": True, "output_skip": True, "layer_norm_z": True, "density": "mixture",
    },
    "zforcing over tokens": TOKENS | {"aux_stop_gradient": "backward_net", "label_classes": 2},
    "storn": {"system": "storn"},
    "vrnn": {"system": "vrnn"},
    "vrnn with feature extractors": {"system": "vrnn", "vrnn_features": True},
    "vrnn over tokens": {"system": "vrnn"} | TOKENS,
    "srnn": {"system": "srnn", "density": "bernoulli"},
    "srnn over tokens": {"system": "srnn"} | TOKENS,
    "rnn over tokens": {"system": "rnn"} | TOKENS,
    "lru, sample after sample": {"system": "lru", "density": "autoregressive"},
}  # fmt: skip


def batch(density: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(T, B, Z, generator=generator)
    if density == "categorical":
        return torch.randint(X, (T + 1, B), generator=generator), eps
    frames = torch.randn(T + 1, B, X, generator=generator)
    return (frames > 0).float() if density == "bernoulli" else frames, eps


def train_all(stage: int) -> dict[str, dict[str, torch.Tensor] | None]:
    from zfdist import engine, world

    here, trained = world.connect(), {}
    # With its usual epsilon Adam divides a gradient that is nearly zero by itself, and so shows rounding as a step.
    optim = OptimConfig(learning_rate=0.1, adam_eps=1.0)
    for name, options in CASES.items():
        config = ModelConfig(**(SIZES | options))
        shard = engine.Engine(build(config, X, 0), EngineConfig(zero_stage=stage, precision="fp32"), optim, here)
        frames, eps = batch(config.density)
        rows = slice(here.rank, None, here.size)
        lengths, labels = torch.tensor([T, 2, T, 3])[rows], torch.tensor([0, 1, -1, 1])[rows]
        mask = torch.arange(T)[:, None] < lengths
        for _ in range(STEPS):
            terms = shard.forward(frames[:-1, rows], frames[1:, rows], lengths, eps[:, rows])
            loss = objective(terms, mask, Weights(0.5, 0.1, 0.2, 0.0, label=0.5), B, labels)
            shard.backward(loss.total)
            shard.step(optim.learning_rate)
        trained[name] = shard.weights()
        shard.close()
    return trained


@pytest.fixture(scope="module")
def trained() -> list[dict[str, dict[str, torch.Tensor]]]:
    """Weights by case: of one worker, and of two under ZeRO 3."""
    return [harness.run_ranks(size, train_all, stage)[0] for size, stage in ((1, 0), (2, 3))]


@pytest.mark.parametrize("case", CASES)
def test_equal_to_one_worker(trained: list[dict[str, dict[str, torch.Tensor]]], case: str) -> None:
    one, two = (weights[case] for weights in trained)
    assert one.keys() == two.keys()
    start = build(ModelConfig(**(SIZES | CASES[case])), X, 0).state_dict()
    assert not any(torch.equal(one[name], start[name]) for name in one if "weight" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
