"""The best validation of a run is always there to be evaluated, wherever it falls between the checkpoints."""

import json
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from jobs import evaluate
from zfdist import train, world
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import run_folder
from zfdist.config import Config
from zfdist.evaluation.evaluate import load_model

HERE = world.World(0, 1, 0, torch.device("cpu"), None)
RUINOUS = {"optim.learning_rate": 5.0}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    """A world of one in this process, as `python` without a launcher has it."""
    world.connect()


def config_of(store: Path, **values: Any) -> Config:
    return harness.tiny_config(
        store, **{"train__validate_every": 2, "checkpoint__every_steps": 100, "checkpoint__keep_last": 1} | values
    )


def validations(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["valid/elbo_nats"] for line in lines if "valid/elbo_nats" in line}


def test_the_best_between_two_checkpoints_is_kept(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validated at 2, 4, 6 ... and ruined after 7: the best has no other reason to be kept than being the best."""
    run = tmp_path / "run"
    assert train.train(config_of(store, train__steps=14), run, HERE, harness.Recorder(7)) == ("stopped", 7)
    ruined = config_of(store, train__steps=14).with_values(RUINOUS)
    assert train.train(ruined, run, HERE, harness.Recorder()) == ("finished", 14)
    seen = validations(run)
    best = max(seen, key=lambda step: seen[step])
    assert best == 6 and seen[14] < seen[6]
    assert checkpoint.steps(run) == [6, 14]
    assert "step 14: the best validation" in capsys.readouterr().out
    assert evaluate.main([str(run), "--split", "valid", "--json", str(tmp_path / "valid.json")]) == 0
    got = json.loads((tmp_path / "valid.json").read_text())
    assert (got["step"], got["elbo_nats"]) == (6, pytest.approx(seen[6], rel=1e-6))
    assert f"{seen[6]:,.2f} nats per sequence, is that of step 6, kept" in capsys.readouterr().out


def test_a_stopped_run_has_its_best_and_says_that_its_newest_was_not_validated(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train.train(config_of(store), run, HERE, harness.Recorder(5))
    assert checkpoint.steps(run) == [4, 5]
    assert load_model(run).manifest.step == 4
    out = capsys.readouterr().out
    assert "is that of step 4, kept; the newest checkpoint, of step 5, was not validated" in out


def test_a_kill_between_validation_and_checkpoint_loses_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train.train(config_of(store), whole, HERE, harness.Recorder())
    save = train._save

    def die(run: Any, *arguments: Any, **named: Any) -> Any:
        if run.step == 4:
            raise KeyboardInterrupt
        return save(run, *arguments, **named)

    monkeypatch.setattr(train, "_save", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(config_of(store), killed, HERE, harness.Recorder())
    assert 4 in validations(killed) and checkpoint.steps(killed) == [2]
    assert "at step 4, has no checkpoint; the best that has is that of step 2" in run_folder.choice(
        killed, checkpoint.scores(killed)
    )
    monkeypatch.undo()
    train.train(config_of(store), killed, HERE, harness.Recorder())
    assert validations(killed) == validations(whole)
    best = checkpoint.best(killed)
    assert best is not None and best.name == checkpoint.best(whole).name  # type: ignore[union-attr]
    assert (best / checkpoint.WEIGHTS).read_bytes() == (
        whole / "checkpoints" / best.name / checkpoint.WEIGHTS
    ).read_bytes()


def test_a_run_of_before_says_that_its_best_has_no_checkpoint(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train.train(config_of(store, checkpoint__keep_best=0), run, HERE, harness.Recorder(5))
    assert checkpoint.steps(run) == [5]
    assert "no checkpoint was validated; the newest, of step 5" in capsys.readouterr().out
    train.train(
        config_of(store, checkpoint__keep_best=0, **{"optim__learning_rate": 5.0}), run, HERE, harness.Recorder()
    )
    assert evaluate.main([str(run)]) == 0
    assert "at step 4, has no checkpoint; the best that has is that of step 8" in capsys.readouterr().out
