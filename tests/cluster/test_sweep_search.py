"""A sweep that learns, on a real Ray: killed at each kind of moment it is the sweep that it would have been."""

import json
from pathlib import Path
from typing import Any

import commands
import harness
import pytest

from cluster.sweep import journal
from zfdist import run_protocol
from zfdist.config import Config

SPACE = ["--choice", "loss.kl.kind=constant,linear", "--uniform", "loss.kl.start=0.1,0.9"]
SPACE += ["--loguniform", "optim.learning_rate=1e-6,1e-1", "--search", "optuna"]
# One trial after the other: what the search knows at a suggestion does not depend on who was faster.
IN_TURN = ["--trials-at-once", "1", "--grace-steps", "20", "--reduction-factor", "2"]


@pytest.fixture(scope="module")
def config(store: Path) -> Config:
    return harness.tiny_config(
        store, train__steps=80, train__log_every=20, train__validate_every=20, checkpoint__every_steps=20
    )


def told(folder: Path) -> dict[str, Any]:
    """All that a sweep tried, was told and decided."""
    found = {}
    for run in sorted((folder / "trials").iterdir()):
        events = [(e.step, e.decision, e.metrics["valid/elbo_nats"]) for e in journal.read(run, run.name)]
        ended = json.loads((run / "result.json").read_text())
        found[run.name] = (json.loads((run / "suggestion.json").read_text()), events, ended["state"], ended["step"])
    return found


def test_a_search_stops_one_trial_by_name_and_is_dry_first(cluster: str, config: Config, tmp_path: Path) -> None:
    words = ["demo", "--name", "s", "--samples", "3", *SPACE, "--scheduler", "none", *commands.flags(config)]
    code, out = commands.run("sweep", *words, "--dry-run", folder=tmp_path)
    assert code == 0 and "plan of runs/s: 3 trials" in out and "Ray" not in out and not (tmp_path / "runs").exists()
    driver = commands.start("sweep", *words, "--trials-at-once", "1", "--train.steps", "20000", folder=tmp_path)
    folder = tmp_path / "runs/s/trials"
    commands.wait_for(lambda: (folder / "000/metrics.jsonl").exists(), "the first trial runs", within_s=120)
    code, out = commands.run("sweep", "stop", "s", "000", folder=tmp_path)
    assert code == 0 and "trial 000: is stopped" in out, out
    commands.wait_for(lambda: (folder / "001/metrics.jsonl").exists(), "the next trial runs", within_s=120)
    code, out = commands.run("sweep", "stop", "s", folder=tmp_path)
    assert code == 0, out
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0 and "2 trials are not over" in out, out
    assert json.loads((folder / "000/result.json").read_text())["by"] == "name"
    assert not (folder / "001/result.json").exists() and not (folder / "002").exists()
    code, out = commands.run("sweep", "stop", "s", "007", folder=tmp_path)
    assert code == 1 and "runs/s has no trial '007': there are 000, 001" in out, out


@pytest.mark.drill
def test_a_driver_killed_at_each_kind_of_moment_decides_as_without(
    cluster: str, config: Config, tmp_path: Path
) -> None:
    words = ["demo", "--samples", "6", *SPACE, *IN_TURN, *commands.flags(config)]
    code, out = commands.run("sweep", *words, "--name", "whole", folder=tmp_path)
    assert code == 0, out
    trials = tmp_path / "runs/cut/trials"
    moments = {
        "a suggestion is written and not used": lambda: (trials / "001/suggestion.json").exists(),
        "between two validations": lambda: len(journal.read(trials / "002", "002")) >= 1,
        "a trial was decided on, and the next is not suggested": lambda: (trials / "003/result.json").exists(),
        "in a later trial's training": lambda: (trials / "004/metrics.jsonl").exists(),
    }
    for moment, has_come in moments.items():
        driver = commands.start("sweep", *words, "--name", "cut", folder=tmp_path)
        commands.wait_for(has_come, moment, within_s=240)
        commands.kill(driver)
    code, out = commands.run("sweep", *words, "--name", "cut", "--confirm", "2x2", folder=tmp_path)
    assert code == 0 and "paired by seed" in out, out
    assert told(tmp_path / "runs/cut") == told(tmp_path / "runs/whole")
    for run in sorted(trials.iterdir()):
        steps = [r["step"] for r in run_protocol.records(run) if "valid/elbo_nats" in r]
        assert steps == sorted(set(steps)), "no validation twice"
    confirmed = tmp_path / "runs/cut/confirm"
    assert (confirmed / "verdict.csv").read_text().count("\n") == 3
    before = harness.tree(confirmed / "trials")
    code, out = commands.run("sweep", *words, "--name", "cut", "--confirm", "2x2", folder=tmp_path)
    assert code == 0 and harness.tree(confirmed / "trials") == before, "nothing is trained twice"


@pytest.mark.drill
def test_a_population_killed_in_the_middle_is_the_same_population(cluster: str, config: Config, tmp_path: Path) -> None:
    words = ["demo", "--scheduler", "pbt", "--population", "4", "--interval-steps", "20", *commands.flags(config)]
    words += ["--loguniform", "loss.alpha=1e-3,1", "--loguniform", "optim.learning_rate=1e-4,1e-1"]
    code, out = commands.run("sweep", *words, "--name", "whole", folder=tmp_path)
    assert code == 0 and "the best member of the end" in out, out
    cut, whole = tmp_path / "runs/cut", tmp_path / "runs/whole"
    second = cut / "generations/01"
    moments = {
        "in the first generation": lambda: any((cut / "generations/00").glob("trials/*/metrics.jsonl")),
        "in an exchange": lambda: (second / "lineage.json").exists(),
        "in the second generation": lambda: any(second.glob("trials/*/result.json")),
    }
    for moment, has_come in moments.items():
        driver = commands.start("sweep", *words, "--name", "cut", folder=tmp_path)
        commands.wait_for(has_come, moment, within_s=240)
        commands.kill(driver)
    code, out = commands.run("sweep", *words, "--name", "cut", folder=tmp_path)
    assert code == 0, out
    for name in ("population.csv", "schedule.csv"):
        assert (cut / name).read_text() == (whole / name).read_text()
    assert (cut / "schedule.png").stat().st_size > 5_000
    again = ["--name", "again", "--from-schedule", "runs/whole", "--seeds", "2"]
    code, out = commands.run("sweep", *words, *again, folder=tmp_path)
    assert code == 0 and "paired by seed" in out, out
