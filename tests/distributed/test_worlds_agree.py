"""The same run on 1, 2 and 3 workers, with and without accumulation, and under every ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from zfdist.config import Config

STEPS = 5
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {"plain": {}, "accumulated": {"engine__accumulation_steps": 3}},
    2: {"plain": {}, "accumulated": {"engine__accumulation_steps": 2}}
    | {f"zero-{stage}": {"engine__zero_stage": stage} for stage in (0, 2, 3)}
    | {"bf16": {"engine__precision": "bf16"}},
    3: {"plain": {}},
}


def train_cases(folder: str, cases: dict[str, Config]) -> None:
    from zfdist import train, world

    here = world.connect()
    for name, config in cases.items():
        train.train(config, Path(folder, name), here, harness.Recorder())


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by "<workers>/<case>"; 7 sequences a step divide neither by 2 nor by 3."""
    root = tmp_path_factory.mktemp("worlds")
    # With its usual epsilon Adam divides a gradient that is nearly zero by itself, and so shows rounding as a step.
    common = {"train__steps": STEPS, "train__log_every": 1, "train__validate_every": STEPS, "optim__adam_eps": 1.0}
    common |= {"optim__learning_rate": 0.1}
    for size, cases in CASES.items():
        configs = {name: harness.tiny_config(store, **common, **values) for name, values in cases.items()}
        harness.run_ranks(size, train_cases, str(root / str(size)), configs)
    return {f"{size}/{name}": root / str(size) / name for size, cases in CASES.items() for name in cases}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "other", ["1/accumulated", "2/plain", "2/accumulated", "2/zero-0", "2/zero-2", "2/zero-3", "3/plain"]
)
def test_equal_to_one_worker(runs: dict[str, Path], other: str) -> None:
    one, many = weights(runs["1/plain"]), weights(runs[other])
    assert one.keys() == many.keys()
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(lines(runs["1/plain"]), lines(runs[other]), strict=True):
        for key, value in ours.items():
            if key.split("/")[0] in ("train", "valid", "weights", "optim"):
                assert theirs[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


def test_training_moved_the_weights(runs: dict[str, Path], store: Path) -> None:
    from zfdist.model import systems

    config = harness.tiny_config(store)
    start = systems.build(config.model, harness.FRAME, config.train.seed).state_dict()
    moved = [
        name for name, w in weights(runs["1/plain"]).items() if (w - start[name]).abs().max() > 1e-4
    ]  # 50 times the tolerance
    assert len(moved) == len(start), f"not trained: {start.keys() - set(moved)}"


def test_bf16_is_near_and_not_equal(runs: dict[str, Path]) -> None:
    last = [lines(runs[name])[-3]["train/elbo_nats"] for name in ("2/plain", "2/bf16")]
    assert last[0] != last[1]
    assert last[1] == pytest.approx(last[0], rel=0.02)
