"""An evaluation on workers of a Ray gives the number of one process, and survives the loss of a worker."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import commands
import harness
import pytest
import torch

from zfdist import train, world
from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config
from zfdist.data.store import Store
from zfdist.evaluation import evaluate
from zfdist.evaluation.bounds import Importance
from zfdist.evaluation.evaluate import EvaluationError, load_model
from zfdist.evaluation.results import Question

QUESTION = Question(split="train", seeds=(7, 8), importance=Importance(samples=4, chunk=3))


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of 8 steps; tests only read it."""
    world.connect()
    folder = tmp_path_factory.mktemp("measure") / "run"
    here = world.World(0, 1, 0, torch.device("cpu"), None)
    train.train(harness.tiny_config(store), folder, here, harness.Recorder())
    return checkpoint.resolve(folder)


def config_of(run: Path) -> Config:
    return checkpoint.read_manifest(run).config


def numbers(result: Any) -> dict[str, Any]:
    flat = dataclasses.asdict(result.result)
    flat |= {f"{name} error": error for name, error in flat.pop("seed_stderr").items()}
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def test_workers_give_the_number_of_one_process(cluster: str, run: Path, store: Path) -> None:
    from cluster.evaluate import measure

    alone = evaluate.evaluate_split(load_model(run), Store.open(store), QUESTION, device=torch.device("cpu"))
    said: list[str] = []
    together = measure(run, config_of(run), QUESTION, workers=2, say=said.append)
    assert numbers(together) == pytest.approx(numbers(alone), rel=1e-6)
    assert said[0] == "evaluating train in 8 shares on 2 workers ..."
    assert said[-1] == "8 of 8 shares done"
    commands.wait_for(commands.nothing_held, "all CPUs free", within_s=10)


def test_a_lost_worker_costs_its_share_only(
    cluster: str, run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import evaluate as measure

    def die_once(*job: Any) -> Any:
        first = tmp_path / "died"
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*job)

    expected = measure.measure(run, config_of(run), QUESTION, workers=2, say=lambda line: None)
    score = measure._score
    monkeypatch.setattr(measure, "_score", die_once)
    again = measure.measure(run, config_of(run), QUESTION, workers=2, say=lambda line: None)
    assert (tmp_path / "died").exists()
    assert again.result == expected.result
    assert (again.scores.elbo_N == expected.scores.elbo_N).all() and again.scores.names == expected.scores.names


def test_what_a_worker_refuses_is_one_sentence(cluster: str, run: Path) -> None:
    from cluster.evaluate import measure
    from cluster.nodes import ClusterError

    other = dataclasses.replace(QUESTION, split="dev")
    with pytest.raises(EvaluationError, match=r"^split 'dev': .* has train, valid, test$"):
        measure(run, config_of(run), other, workers=2, say=lambda line: None)
    with pytest.raises(ClusterError, match="--workers 64 of 1 CPU each do not fit"):
        measure(run, config_of(run), QUESTION, workers=64, say=lambda line: None)


def test_the_command(cluster: str, run: Path, tmp_path: Path) -> None:
    words = [str(run), "--bounds", "elbo,iwae", "--num-samples", "3", "--json"]
    code, out = commands.run("evaluate", *words, "here.json", folder=tmp_path)
    assert code == 0, out
    code, out = commands.run("evaluate", *words, "there.json", "--workers", "2", folder=tmp_path)
    assert code == 0 and "8 of 8 shares done" in out and "IWAE-3 per sequence" in out, out
    here, there = (json.loads((tmp_path / name).read_text()) for name in ("here.json", "there.json"))
    is_number = {name for name, value in here.items() if isinstance(value, int | float)}
    assert {name: there[name] for name in is_number} == pytest.approx(
        {name: here[name] for name in is_number}, rel=1e-6
    )
    assert here.keys() == there.keys() and here["checkpoint"] == there["checkpoint"]
    code, out = commands.run("evaluate", str(run), "--workers", "64", folder=tmp_path)
    assert code == 1 and "error: --workers 64 of 1 CPU each do not fit" in out and "Traceback" not in out, out
