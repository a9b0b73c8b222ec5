"""fp16 operands under a loss scale, under every ZeRO stage: what would vanish is kept, what overflows is skipped."""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from zfdist.config import Config, EngineConfig, OptimConfig
from zfdist.loss_scale import LossScale

STAGES = (0, 1, 2, 3)
INPUTS = 8
NORMAL, FAINT, LOUD = 1.0, 1e-7, 1e4  # gradients of 1e-7 are 0 in fp16, of 1e4 and 65,536 times that infinite


class Seen(NamedTuple):
    """What an engine did at one step."""

    grad_norm: float
    skipped: bool
    scale_before: float
    scale_after: float
    moved: bool


def one_step(engine: Any, loudness: float, rank: int) -> Seen:
    before, scale = engine.weights(), engine.loss_scale
    rows = torch.randn(6, INPUTS, generator=torch.Generator().manual_seed(7 + rank))
    engine.backward(loudness * engine.forward(rows).float().sin().sum() / 12)
    update = engine.step(0.1)()
    after = engine.weights()
    moved = before is not None and any(not torch.equal(before[name], after[name]) for name in before)
    return Seen(update.grad_norm, update.skipped, scale, engine.loss_scale, moved)


def steps(loudness: dict[str, tuple[float, ...]]) -> dict[str, dict[int, list[Seen]]]:
    seen: dict[str, dict[int, list[Seen]]] = {precision: {} for precision in loudness}
    for precision, stage in itertools.product(loudness, STAGES):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, 3))
        engine, rank = wrapped(net, stage, precision)
        seen[precision][stage] = [one_step(engine, loud, rank) for loud in loudness[precision]]
        engine.close()
        assert "forward" not in net.__dict__
    return seen


def wrapped(net: nn.Module, stage: int, precision: str = "fp16") -> tuple[Any, int]:
    from zfdist import engine, world

    here = world.connect()
    return engine.Engine(net, EngineConfig(zero_stage=stage, precision=precision), OptimConfig(), here), here.rank


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[int, list[Seen]]]:
    loudness = {"fp16": (NORMAL, FAINT, LOUD, LOUD, NORMAL), "fp32": (NORMAL, FAINT)}
    return harness.run_ranks(2, steps, loudness)[0]


@pytest.fixture(scope="module")
def fp16(seen: Any) -> dict[int, list[Seen]]:
    return seen["fp16"]


@pytest.fixture(scope="module")
def fp32(seen: Any) -> dict[int, list[Seen]]:
    return seen["fp32"]


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_those_of_fp32_also_where_fp16_has_none(fp16: Any, fp32: Any, stage: int) -> None:
    assert fp16[stage][0].grad_norm == pytest.approx(fp32[stage][0].grad_norm, rel=2e-3)
    assert fp16[stage][0].grad_norm != fp32[stage][0].grad_norm
    faint = fp16[stage][1]
    assert faint.grad_norm == pytest.approx(fp32[stage][1].grad_norm, rel=0.05)
    assert faint.moved


@pytest.mark.parametrize("stage", STAGES)
def test_an_overflow_is_skipped_and_halves_the_scale(fp16: Any, stage: int) -> None:
    *_, first, second, last = fp16[stage]
    for seen in (first, second):
        assert seen.skipped
        assert not seen.moved
        assert seen.scale_after == seen.scale_before / 2
    assert not last.skipped
    assert last.moved
    assert last.scale_after == last.scale_before == 2.0**14


def test_all_stages_do_the_same(fp16: Any) -> None:
    for stage in STAGES[1:]:
        for ours, theirs in zip(fp16[stage], fp16[0], strict=True):
            assert ours[1:] == theirs[1:]
            assert ours.skipped or ours.grad_norm == pytest.approx(theirs.grad_norm, rel=0.01)


def saved(folder: str) -> None:
    for stage in STAGES:
        engine, rank = wrapped(nn.Linear(INPUTS, 3), stage)
        for loudness in (NORMAL, LOUD, NORMAL):
            one_step(engine, loudness, rank)
        engine.save(Path(folder, str(stage)))
        engine.close()


def loaded(folder: str, stages: tuple[int, ...]) -> list[tuple[float, bool]]:
    seen = []
    for stage in stages:
        engine, rank = wrapped(nn.Linear(INPUTS, 3), stage)
        state, scratch = Path(folder, str(stage)), Path(folder, f"universal-{stage}")
        engine.load(state, saved_world_size=2, saved_zero_stage=stage, scratch=scratch, converts=rank == 0)
        step = one_step(engine, NORMAL, rank)
        seen.append((step.scale_before, step.skipped))
        engine.close()
    return seen


@pytest.mark.drill
def test_a_checkpoint_knows_the_scale_on_another_number_of_workers_too(tmp_path: Path) -> None:
    harness.run_ranks(2, saved, str(tmp_path))
    for workers, stages in ((2, STAGES), (1, (0, 1, 2))):
        for seen in harness.run_ranks(workers, loaded, str(tmp_path), stages):
            assert seen == [(2.0**15, False)] * len(stages)


def train_all(folder: str, runs: list[tuple[str, Config]]) -> None:
    from zfdist import train, world

    for name, config in runs:
        train.train(config, Path(folder, name), world.connect(), harness.Recorder())


def scales(run: Path) -> list[float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["optim/loss_scale"] for line in lines if "optim/loss_scale" in line]


def test_a_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path, store: Path) -> None:
    fp16 = {"train__log_every": 1, "engine__precision": "fp16"}
    three, six = (harness.tiny_config(store, train__steps=steps, **fp16) for steps in (3, 6))
    harness.run_ranks(2, train_all, str(tmp_path), [("whole", six), ("halves", three), ("halves", six)])
    last = "checkpoints/step-00000006/model.safetensors"
    whole, halves = (load_file(tmp_path / name / last) for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert scales(tmp_path / "whole") == scales(tmp_path / "halves")
    assert scales(tmp_path / "whole")[-1] < LossScale().value  # some updates overflowed
