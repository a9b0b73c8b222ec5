"""What is refused changes nothing: the run folder is the same before and after, to the byte and the second."""

import json
from pathlib import Path

import harness
import pytest

from zfdist import train, world
from zfdist.config import Config
from zfdist.errors import ZfdistError
from zfdist.run_protocol import Weights

OTHERS = {
    "train__seed": (99, "was trained with train.seed = 1234, and now it is 99"),
    "model__hidden": (17, "was trained with model.hidden = 16, and now it is 17"),
    "model__aux_stop_gradient": ("backward_net", "was trained with model.aux_stop_gradient = target"),
    "data__global_batch": (6, "was trained with data.global_batch = 7, and now it is 6"),
    "data__segment_frames": (9, "data.segment_frames = 10, and now it is 9"),
    "engine__precision": ("bf16", "engine.precision = fp32, and now it is bf16"),
    "engine__zero_stage": (3, "cannot be read by 1 with engine.zero_stage = 3"),
    "train__steps": (6, "has come to step 8 already, and train.steps = 6"),
    "model__density": ("bernoulli", "model.density = bernoulli"),
}


def refused(config: Config, run: Path, message: str, **how: str) -> None:
    """Assert that training is refused with a message and leaves the run as it was."""
    before = harness.tree(run)
    with pytest.raises(ZfdistError) as caught:
        train.train(config, run, world.connect(), harness.Recorder(), **how)
    assert message in str(caught.value), caught.value
    assert harness.tree(run) == before


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return harness.copied(trained, tmp_path / "run")


@pytest.mark.parametrize("name", OTHERS)
def test_another_config_is_refused_and_the_finished_run_stays_finished(store: Path, run: Path, name: str) -> None:
    value, message = OTHERS[name]
    refused(harness.tiny_config(store, **{name: value}), run, message)
    assert json.loads((run / "result.json").read_text())["state"] == "finished"


def test_other_data_are_refused(run: Path, tmp_path: Path) -> None:
    other = harness.make_store(tmp_path / "other", seed=1)
    refused(harness.tiny_config(other), run, "the fingerprint of the data")


def test_data_that_are_gone_are_refused(run: Path, tmp_path: Path) -> None:
    refused(harness.tiny_config(tmp_path / "gone"), run, "gone: no manifest.json")


def test_a_run_without_an_intact_checkpoint_is_refused_each_time(store: Path, run: Path) -> None:
    for weights in run.rglob("model.safetensors"):
        weights.write_bytes(b"damaged")
    for _ in range(2):  # a run never silently starts over
        refused(harness.tiny_config(store, train__steps=12), run, "none of its 2 checkpoints is intact")


def test_a_checkpoint_of_another_version_is_refused(store: Path, run: Path) -> None:
    path = run / "checkpoints/step-00000008/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused(harness.tiny_config(store, train__steps=12), run, "format 99, this version reads 1")


def test_a_checkpoint_that_does_not_say_x_dim_is_gone_on_with(store: Path, run: Path) -> None:
    path = run / "checkpoints/step-00000008/manifest.json"
    tree = json.loads(path.read_text())
    assert tree.pop("x_dim") == harness.FRAME
    path.write_text(json.dumps(tree))
    config = harness.tiny_config(store, train__steps=12)
    assert train.train(config, run, world.connect(), harness.Recorder()) == ("finished", 12)
    assert json.loads((run / "checkpoints/step-00000012/manifest.json").read_text())["x_dim"] == harness.FRAME


def test_wrong_weights_to_start_from_are_refused(store: Path, run: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for source, message in ((tmp_path / "none", "no such run"), (fresh, "no finished checkpoint")):
        refused(harness.tiny_config(store), fresh / "run", message, start_from=Weights(str(source)))
    other = harness.tiny_config(store, model__hidden=17)
    refused(other, fresh / "run", "model.hidden = 16, this run has 17", start_from=Weights(str(run)))


def test_torn_files_do_not_keep_a_run_from_going_on(store: Path, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:2], bytes(300), b"\n", *lines[2:], b'{"step": 8, "tr']))
    for name in ("result.json", "config.json"):
        (run / name).write_bytes(b"")
    config = harness.tiny_config(store, train__steps=12)
    assert train.train(config, run, world.connect(), harness.Recorder()) == ("finished", 12)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 12 and len(steps) > len(lines)
    assert json.loads((run / "result.json").read_text())["step"] == 12
    modes = {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.suffix in (".safetensors", ".json")}
    assert modes == {0o644}, "a colleague may read weights as all else"
