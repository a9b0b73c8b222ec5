"""Sweeps on Ray Tune: what is stopped frees its workers, and a killed driver costs nothing that was finished."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import harness
import pytest

from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
from cluster.sweep.record import prepare
from cluster.sweep.search_space import Space
from zfdist import run_protocol
from zfdist.config import Config

# One learning rate that learns, and one that cannot: the scheduler has something to stop.
SPACE = Space(grid={"optim.learning_rate": (1e-2, 1e-7), "loss.alpha": (0.0, 0.01)})
HALVING = SweepPlan(Stopping(grace_steps=20, reduction_factor=2))


@pytest.fixture(scope="module")
def config(store: Path) -> Config:
    """So long that what is to be stopped at its first validation has not finished until it hears of it."""
    return harness.tiny_config(
        store, train__steps=400, train__log_every=20, train__validate_every=20, checkpoint__every_steps=100
    )


def swept(
    folder: Path, config: Config, space: Space = SPACE, plan: SweepPlan = HALVING
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run or go on with a sweep in this process; return its results and what it said."""
    from cluster.sweep.driver import sweep

    trials = prepare(folder, config, space, samples=0, seed=0)
    said: list[str] = []
    results = sweep(folder, config, trials, plan, show=lambda rows: None, say=said.append)
    return results, said


def lines_of(folder: Path) -> dict[str, int]:
    """Return how many lines of metrics each trial has: more of them means that it was trained again."""
    return {run.name: sum(1 for _ in run_protocol.records(run)) for run in sorted((folder / "trials").iterdir())}


def test_sweep_stops_laggards_frees_everything_and_is_not_repeated(
    cluster: str, config: Config, tmp_path: Path
) -> None:
    results, _ = swept(tmp_path, config, plan=replace(HALVING, profile=True))
    assert [r["state"] for r in results].count("stopped") >= 1
    assert all((tmp_path / f"trials/{r['id']}/profile/rank-0-breakdown.json").is_file() for r in results)
    assert results[0]["state"] == "finished" and results[0]["step"] == 400
    assert results[0]["values"]["optim.learning_rate"] == 1e-2
    assert results == sorted(results, key=lambda r: -r["objective"])
    assert results == json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "results.csv").open() as file:
        assert next(csv.DictReader(file))["optim.learning_rate"] == "0.01"
    commands.wait_for(commands.nothing_held, "all CPUs free and no placement group left", within_s=10)

    before = lines_of(tmp_path)
    again, said = swept(tmp_path, config)
    assert again == results and lines_of(tmp_path) == before
    assert any("4 of them over" in line for line in said)


@pytest.mark.drill
def test_stopped_trials_of_two_workers_free_them(cluster: str, config: Config, tmp_path: Path) -> None:
    space = Space(grid={"optim.learning_rate": (1e-2, 1e-7)})
    results, _ = swept(tmp_path, config, space, replace(HALVING, machines=TrialMachines(workers_per_trial=2)))
    assert [r["id"] for r in results] == ["000", "001"]
    assert [r["state"] for r in results] == ["finished", "stopped"]
    commands.wait_for(commands.nothing_held, "all CPUs free and no placement group left", within_s=10)


def test_killed_driver_repeats_and_loses_no_finished_trial(
    cluster: str, store: Path, tmp_path: Path, slow_config: Config
) -> None:
    words = ["demo", "--name", "s", "--samples", "0", "--grid", "loss.alpha=0,0.01", "--grid", "loss.beta=0,0.1"]
    words += ["--scheduler", "none", *commands.flags(slow_config)]
    folder = tmp_path / "runs" / "s"
    driver = commands.start("sweep", *words, folder=tmp_path)
    finished = lambda: [p.parent for p in folder.glob("trials/*/result.json")]  # noqa: E731
    commands.wait_for(lambda: len(finished()) >= 2, "two finished trials", within_s=240)
    commands.kill(driver)
    done = {run: (run / "metrics.jsonl").read_bytes() for run in finished()}
    assert 2 <= len(done) < 4

    code, out = commands.run("sweep", *words, folder=tmp_path)
    assert code == 0, out
    assert all((run / "metrics.jsonl").read_bytes() == before for run, before in done.items()), "trained again"
    results = json.loads((folder / "results.json").read_text())
    assert [r["state"] for r in results] == ["finished"] * 4
    assert f"best trial: runs/s/trials/{results[0]['id']}" in out
    for result in results:
        steps = [
            line["step"] for line in run_protocol.records(tmp_path / result["folder"]) if "valid/elbo_nats" in line
        ]
        assert steps == [100, 200, 300, 400, 500, 600], "no step twice, none lost"
    commands.wait_for(commands.nothing_held, "all CPUs free and no placement group left", within_s=10)


def test_diverged_trial_ends_with_its_reason_and_the_others_go_on(cluster: str, config: Config, tmp_path: Path) -> None:
    space = Space(grid={"optim.adam_eps": (1e-5,), "optim.learning_rate": (1e-2, 10.0)})
    wild = config.with_values({"engine.max_nonfinite_steps": 1, "optim.clip_norm": 0.0, "model.latent_clamp": 0.0})
    results, _ = swept(tmp_path, wild, space, SweepPlan(Stopping("none")))
    states = {run.name: json.loads((run / "result.json").read_text()) for run in (tmp_path / "trials").iterdir()}
    assert states["000"]["state"] == "finished"
    if states["001"]["state"] != "finished":  # whether this learning rate overflows depends on the machine's rounding
        assert states["001"]["state"] == "diverged" and "non-finite" in states["001"]["error"]
    assert results[0]["id"] == "000"
