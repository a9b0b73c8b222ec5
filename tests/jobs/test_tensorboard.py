"""TensorBoard on a run folder shows what metrics.jsonl says, also after work was lost and done again."""

import json
import shutil
import time
from pathlib import Path

import harness
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zfdist import train, world

HERE = world.World(0, 1, 0, torch.device("cpu"), None)


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by name and step, as TensorBoard reads them; fails on a step shown twice."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps)), f"{name}: {steps}"
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    return found


def written(folder: Path) -> dict[str, dict[int, float]]:
    """The same from metrics.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "time_s"):
                found.setdefault(name, {})[record["step"]] = pytest.approx(value, rel=1e-6)
    return found


def test_scalars_are_the_metrics_also_after_a_resume(store: Path, tmp_path: Path) -> None:
    world.connect()
    config = harness.tiny_config(store, train__log_every=1)
    run = tmp_path / "run"
    train.train(config, run, HERE, harness.Recorder())
    assert shown(run) == written(run)
    assert {"train/elbo_nats", "valid/elbo_nats", "weights/kl", "speed/frames_per_s"} <= shown(run).keys()
    assert list(shown(run)["train/kl_nats_per_frame"]) == list(range(1, 9))

    shutil.rmtree(run / "checkpoints/step-00000008")  # as if killed before it was written: steps 5 to 8 are lost work
    time.sleep(1.1)  # event files are named by the second
    train.train(config, run, HERE, harness.Recorder())
    assert shown(run) == written(run)
    assert list(shown(run)["train/kl_nats_per_frame"]) == list(range(1, 9))
