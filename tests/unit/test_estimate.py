"""What a plan foretells against what really is: parameters, kept tensors, files of a checkpoint, and the arithmetic."""

import json
from pathlib import Path

import harness
import pytest
import small_systems
from hypothesis import given
from hypothesis import strategies as st

from jobs import plan as job
from zfdist import estimate
from zfdist.checkpoint import retention
from zfdist.config import CheckpointConfig, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from zfdist.model import systems
from zfdist.recipes import RECIPES

COUNTS = st.integers(1, 10**9)
WORKERS = st.integers(1, 512)


@pytest.mark.parametrize("system", small_systems.SYSTEMS)
@pytest.mark.parametrize("density", small_systems.DENSITIES)
def test_parameters_are_those_of_the_network(system: str, density: str) -> None:
    embed = 5 if density == "categorical" else 0
    config = ModelConfig(system=system, density=density, hidden=12, z_dim=3, mlp_dim=7, embed_dim=embed)
    made = systems.build(config, 4, seed=0)
    assert estimate.parameters(config, 4) == sum(p.numel() for p in made.parameters())


def test_parameters_of_the_papers_timit_network() -> None:
    assert estimate.parameters(RECIPES["timit"]().model, 200) == 15_829_280  # as measured in a run


@pytest.mark.parametrize("system", small_systems.SYSTEMS)
def test_activations_foretell_what_autograd_keeps(system: str) -> None:
    config = ModelConfig(system=system, hidden=64, z_dim=4, mlp_dim=8)
    really = estimate.kept_bytes(estimate.as_on_a_gpu(systems.build(config, 10, seed=0)), frames=40, sequences=16)
    assert estimate.activations(config, 10).of(40, 16) == pytest.approx(really, rel=0.03)


def test_a_checkpoint_takes_the_foretold_bytes(tmp_path: Path) -> None:
    (found,) = harness.run_ranks(1, _save_with_each_stage, tmp_path)
    count, sizes = found
    for stage, size in sizes.items():
        assert size == pytest.approx(estimate.checkpoint_bytes(count, stage), rel=0.03), f"ZeRO {stage}"


def _save_with_each_stage(folder: Path) -> tuple[int, dict[int, int]]:
    from safetensors.torch import save_file

    from zfdist.engine import Engine
    from zfdist.world import connect

    world, sizes = connect(), {}
    config = ModelConfig(hidden=256, z_dim=32, mlp_dim=128)
    for stage in estimate.STAGES:
        module = systems.build(config, 200, seed=0)
        count = sum(p.numel() for p in module.parameters())
        engine = Engine(module, EngineConfig(zero_stage=stage), OptimConfig(), world)
        x, y, lengths, eps = _batch(config)
        engine.backward(engine.forward(x, y, lengths, eps).log_px_TB.sum())
        engine.step(1e-3)
        out = folder / str(stage)
        engine.save(out)
        save_file(engine.weights(), out / "model.safetensors")
        sizes[stage] = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and p.suffix != ".py")
        engine.close()
    return count, sizes


def _batch(config: ModelConfig):
    import torch

    x = torch.randn(4, 2, 200)
    return x[:-1], x[1:], torch.full((2,), 3), torch.randn(3, 2, config.z_dim)


@given(COUNTS, WORKERS)
def test_more_sharding_never_takes_more_memory(count: int, workers: int) -> None:
    totals = [estimate.memory(count, stage, workers).total for stage in estimate.STAGES]
    assert totals[1] >= totals[2] >= totals[3]
    assert totals[0] == 16 * count  # weights, gradient, two moments
    assert estimate.memory(count, 3, workers).total * workers == pytest.approx(20 * count)
    assert (totals[1] <= totals[0]) == (workers >= 2 or count == 0)


@given(COUNTS, st.integers(1, 511), st.floats(0.1, 1000))
def test_the_exchange_grows_to_twice_the_gradient(count: int, workers: int, gbit: float) -> None:
    once_s = count * 4 * 8 / (gbit * 1e9)
    assert estimate.exchange_s(count, 1, gbit) == 0
    assert estimate.exchange_s(count, workers, gbit) < estimate.exchange_s(count, workers + 1, gbit) < 2 * once_s
    assert estimate.exchange_s(count, 2, gbit) == pytest.approx(once_s)


@given(st.floats(0.001, 100), COUNTS, st.floats(0.1, 1000))
def test_the_last_worker_that_pays(compute_s: float, count: int, gbit: float) -> None:
    most = estimate.workers_that_pay(compute_s, count, gbit)

    def efficiency(workers: int) -> float:
        return compute_s / (compute_s + workers * estimate.exchange_s(count, workers, gbit))

    assert efficiency(most) >= 0.5 * 0.999999
    assert efficiency(most + 1) < 0.5 * 1.000001


@given(st.floats(0.001, 100), st.integers(1, 64), st.integers(1, 64), st.floats(0, 10))
def test_a_step_lies_between_its_bounds(measured_s: float, before: int, now: int, exchange: float) -> None:
    time = estimate.step_time(measured_s, before, now, exchange)
    assert time.best_s <= time.worst_s
    if now == before:
        assert time.best_s == pytest.approx(time.worst_s) == pytest.approx(measured_s + exchange)


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 9), st.integers(0, 9), st.integers(0, 60), st.randoms())
def test_never_more_checkpoints_than_foretold(every, steps, last, best, for_good, random) -> None:
    validate_every = random.randint(1, 50)
    config = CheckpointConfig(every_steps=every, keep_last=last, keep_best=best, keep_every_steps=for_good)
    train = TrainConfig(steps=steps, validate_every=validate_every)
    scores: dict[int, float | None] = {}
    written = 0
    for step in range(1, steps + 1):
        elbo = random.random() if step % validate_every == 0 or step == steps else None
        is_best = elbo is not None and retention.is_among_best(step, elbo, scores, config)
        if is_best or step % every == 0 or step == steps:
            written += 1
            scores[step] = elbo
            scores = {step: scores[step] for step in retention.kept(scores, config)}
    assert written <= len(estimate.checkpoints_written(config, train))
    assert len(scores) <= estimate.checkpoints_kept(config, train)


def test_money() -> None:
    assert estimate.money(7200, 4, 1.5, 0.25) == pytest.approx(2 * (4 * 1.5 + 0.25))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["timit", "--workers", "4", "--memory-gib", "0.2", "--step-s", "1.2", "--price", "0.5"]
    assert job.main(words) == 0
    out = capsys.readouterr().out
    assert "15,829,280 parameters" in out and "4 workers, each 8 sequences of 40 steps" in out
    assert "more than 0.2" in out and "fits" in out and "money: " in out and "84,200 steps" in out
    assert job.main(["timit"]) == 0 and "pass --from-run" in capsys.readouterr().out
    assert job.main(["imdb"]) == 2
    assert "pass --x-dim WORDS" in capsys.readouterr().err


def test_time_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zfdist.checkpoint import folder as checkpoint

    config = RECIPES["demo"]().with_values({"train.steps": 1000})
    records = [{"step": s, "time_s": s, "speed/step_s": 0.25} for s in (20, 40)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    manifest = checkpoint.CheckpointManifest(
        step=40, config=config, world_size=2, precision="fp32", data_fingerprint="", normalisation={}, progress={}
    )
    checkpoint.commit(checkpoint.begin(tmp_path, 40), manifest)
    words = ["demo", "--train.steps", "1000", "--workers", "1", "--from-run", str(tmp_path)]
    assert job.main(words) == 0
    assert "a step: 0.500 s if a smaller share is as much faster, 0.500 s if not" in capsys.readouterr().out
    assert job.main([*words, "--model.hidden", "64"]) == 1
    assert "was run with model.hidden = 128, not 64" in capsys.readouterr().err
