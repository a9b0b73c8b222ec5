"""An interrupted run ends where an unbroken one does: bit for bit on as many workers, closely on another number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config
from zfdist.model import systems

STEPS = 8


def train_parts(parts: list[tuple[str, Config, int | None]]) -> list[tuple[str, int]]:
    """Train each (run folder, config, stop after so many steps) in turn; return how each ended."""
    from zfdist import train, world

    here = world.connect()
    return [tuple(train.train(c, Path(folder), here, harness.Recorder(stop))) for folder, c, stop in parts]


def comparable_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines without times, speeds and the checkpoints that an interruption adds."""
    kept = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = {k: v for k, v in json.loads(text).items() if k.split("/")[0] not in ("time_s", "speed", "checkpoint")}
        if len(line) > 1:
            kept.append(line)
    return kept


def shard_bytes(run: Path, pattern: str) -> list[bytes]:
    folder = run / f"checkpoints/step-{STEPS:08d}"
    return [p.read_bytes() for p in sorted(folder.rglob(pattern))]


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 1), (2, 1), (2, 0), (2, 3)])
def test_resume_at_every_step_is_bit_equal(store: Path, tmp_path: Path, world_size: int, zero_stage: int) -> None:
    config = harness.tiny_config(store, engine__zero_stage=zero_stage)
    cuts = range(1, STEPS) if zero_stage == 1 else (3,)
    parts: list[tuple[str, Config, int | None]] = [(str(tmp_path / "unbroken"), config, None)]
    for cut in cuts:
        parts += [(str(tmp_path / f"cut-{cut}"), config, cut), (str(tmp_path / f"cut-{cut}"), config, None)]
    ended = harness.run_ranks(world_size, train_parts, parts)[0]
    assert ended[0] == ("finished", STEPS)
    for i, cut in enumerate(cuts):
        assert ended[1 + 2 * i : 3 + 2 * i] == [("stopped", cut), ("finished", STEPS)]
        again, unbroken = tmp_path / f"cut-{cut}", tmp_path / "unbroken"
        assert shard_bytes(again, "model.safetensors") == shard_bytes(unbroken, "model.safetensors")
        assert len(shard_bytes(again, "*optim_states.pt")) == (world_size if zero_stage else 0)
        assert comparable_metrics(again) == comparable_metrics(unbroken)
        assert json.loads((again / "result.json").read_text()) == json.loads((unbroken / "result.json").read_text())


@pytest.mark.parametrize(("before", "after", "zero_stage"), [(2, 1, 1), (2, 3, 2), (2, 1, 0)])
def test_resume_on_another_number_of_workers(
    store: Path, tmp_path: Path, before: int, after: int, zero_stage: int
) -> None:
    config = harness.tiny_config(store, engine__zero_stage=zero_stage, train__log_every=1)
    unbroken, cut = str(tmp_path / "unbroken"), str(tmp_path / "cut")
    harness.run_ranks(before, train_parts, [(unbroken, config, None), (cut, config, 4)])
    assert harness.run_ranks(after, train_parts, [(cut, config, None)])[0] == [("finished", STEPS)]
    assert not (tmp_path / "cut/checkpoints/.universal").exists(), "the converted copy is left behind"
    expected, found = comparable_metrics(tmp_path / "unbroken"), comparable_metrics(tmp_path / "cut")
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    ours, theirs = (
        load_file(tmp_path / run / f"checkpoints/step-{STEPS:08d}/model.safetensors") for run in ("unbroken", "cut")
    )
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-5, name


def test_kill_9_and_start_again_is_bit_equal(store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store, train__steps=60, checkpoint__every_steps=5, train__validate_every=20)
    harness.run_ranks(1, train_parts, [(str(tmp_path / "unbroken"), config, None)])
    killed = tmp_path / "killed"
    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1]); import harness, test_resume\n"
        "harness.torch.set_num_threads(1)\n"
        "test_resume.train_parts(pickle.loads(bytes.fromhex(sys.argv[2])))"
    )
    import pickle

    argument = pickle.dumps([(str(killed), config, None)]).hex()
    paths = f"{Path(__file__).parent}{os.pathsep}{Path(harness.__file__).parent}"
    command = [sys.executable, "-c", code, str(Path(harness.__file__).parent), argument]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints/step-00000010").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    harness.run_ranks(1, train_parts, [(str(killed), config, None)])
    weights = "checkpoints/step-00000060/model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "unbroken" / weights).read_bytes()
    assert comparable_metrics(killed) == comparable_metrics(tmp_path / "unbroken")


def test_a_run_of_a_budget_keeps_its_sizes_when_a_head_loses_its_weight(store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store, model__parameter_budget=9000)
    without, other = (config.with_values(v) for v in ({"loss.alpha": 0.0}, {"model.parameter_budget": 12_000}))
    run = str(tmp_path / "run")
    ended = harness.run_ranks(1, train_parts, [(run, config, 4), (run, without, None)])[0]
    assert ended == [("stopped", 4), ("finished", STEPS)]
    hidden = {checkpoint.read_manifest(tmp_path / f"run/checkpoints/step-{n:08d}").config.model.hidden for n in (4, 8)}
    assert hidden == {systems.sized(config.model, config.loss, harness.FRAME).hidden}
    assert hidden != {systems.sized(without.model, without.loss, harness.FRAME).hidden}
    with pytest.raises(Exception, match=r"was trained with model\.hidden"):
        harness.run_ranks(1, train_parts, [(run, other, None)])


def as_it_was_before(run: Path) -> None:
    """Make of a run's checkpoint one of before: AdamW's settings beside the moments, no optimizer in its manifest."""
    folder = run / "checkpoints/step-00000004"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("optimizer") == "torch.optim.Adam"
    found = 0
    for path in sorted(folder.rglob("*.pt")):
        shard = torch.load(path, weights_only=False)
        found += decay(shard)
        torch.save(shard, path)
    assert found
    manifest["files"] = {name: size for name, size in checkpoint.hashed(folder).items() if name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def decay(shard: Any) -> int:
    """Set AdamW's decay in every group of an optimizer that is found in a shard; return in how many."""
    if isinstance(shard, dict) and "weight_decay" in shard:
        shard.update(weight_decay=0.01, decoupled_weight_decay=True)
        return 1
    inner = shard.values() if isinstance(shard, dict) else shard if isinstance(shard, list) else ()
    return sum(map(decay, inner))


@pytest.mark.drill
def test_a_checkpoint_of_adamw_goes_on_with_adam_and_says_so(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configs = {stage: harness.tiny_config(store, engine__zero_stage=stage) for stage in (0, 1, 3)}
    parts: list[tuple[str, Config, int | None]] = []
    for stage, config in configs.items():
        parts += [(str(tmp_path / f"unbroken-{stage}"), config, None), (str(tmp_path / f"cut-{stage}"), config, 4)]
    harness.run_ranks(2, train_parts, parts)
    for stage in configs:
        as_it_was_before(tmp_path / f"cut-{stage}")
    shutil.copytree(tmp_path / "cut-1", tmp_path / "universal-1")
    capfd.readouterr()
    harness.run_ranks(2, train_parts, [(str(tmp_path / f"cut-{stage}"), configs[stage], None) for stage in configs])
    harness.run_ranks(1, train_parts, [(str(tmp_path / "universal-1"), configs[1], None)])
    said = [line for line in capfd.readouterr().out.splitlines() if "was trained with AdamW" in line]
    assert len(said) == 4 and all(line.endswith("it is torch.optim.Adam, without weight decay") for line in said)
    for stage, kind, most in ((0, "cut", 0.0), (1, "cut", 0.0), (3, "cut", 0.0), (1, "universal", 1e-5)):
        ours, theirs = (
            load_file(tmp_path / f"{name}-{stage}/checkpoints/step-{STEPS:08d}/model.safetensors")
            for name in (kind, "unbroken")
        )
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= most, (kind, stage)
