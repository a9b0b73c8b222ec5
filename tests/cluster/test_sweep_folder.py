"""What a sweep's folder says: its time, its results, what it began with, and what a driver takes up from it."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import harness
import pytest

from cluster.sweep import from_sweep, journal, record, results
from cluster.sweep.budget import Budget, spent_s
from cluster.sweep.driver import _judge_of_before
from cluster.sweep.goal import Goal, Objective, Requirement
from cluster.sweep.journal import Event
from cluster.sweep.plan import SweepPlan
from cluster.sweep.row import Row
from cluster.sweep.search_space import Space, Trial
from cluster.sweep.suggest import Search
from zfdist.config import Config


def test_time_is_counted_over_all_commands(tmp_path: Path) -> None:
    said: list[str] = []
    with Budget(tmp_path, None) as budget:
        time.sleep(0.2)
        budget.look(said.append)
    with Budget(tmp_path, 1e6) as budget:
        budget.look(said.append)
    assert not said and not (tmp_path / "stop").exists()
    before_s = spent_s(tmp_path)
    assert before_s >= 0.2
    with Budget(tmp_path, 0.1) as budget:
        budget.look(said.append)
        budget.look(said.append)
    assert len(said) == 1 and "the time budget of 0 s is spent" in said[0]
    assert (tmp_path / "stop").exists() and spent_s(tmp_path) >= before_s
    with Budget(tmp_path / "confirm", 3600, elsewhere_s=3600) as budget:
        (tmp_path / "confirm").mkdir()
        budget.look(said.append)
    assert "the time budget of 3600 s is spent" in said[1], "as it was asked for, not what was left of it"
    assert spent_s(tmp_path / "confirm") < 3600


def recorded(folder: Path, name: str, state: str | None, *validations: tuple[int, float, float]) -> Trial:
    run = folder / "trials" / name
    run.mkdir(parents=True)
    lines = [{"step": s, "time_s": float(s), "valid/elbo_nats": e, "valid/kl_nats": k} for s, e, k in validations]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state is not None:
        (run / "result.json").write_text(json.dumps({"state": state, "step": validations[-1][0]}))
    return Trial(name, {"loss.alpha": 0.1})


def test_results_say_what_is_feasible_and_on_the_front_and_are_a_table(tmp_path: Path) -> None:
    trials = [
        recorded(tmp_path, "000", "finished", (10, 1.0, 5.0), (20, 2.0, 4.0)),
        recorded(tmp_path, "001", "stopped", (10, 3.0, 1.0)),
        recorded(tmp_path, "002", None, (10, 1.5, 9.0)),
        recorded(tmp_path, "003", "finished", (10, 0.5, 9.5), (20, 0.6, 3.0)),
    ]
    goal = Goal((Objective(), Objective("valid/kl_nats", "max")), (Requirement("valid/kl_nats", ">=", 2.0),))
    found = results.collect(tmp_path, trials, goal)
    assert [r["id"] for r in found] == ["000", "002", "003", "001"], "what misses a requirement is last"
    by_id = {r["id"]: r for r in found}
    assert by_id["001"]["feasible"] is False and "pareto" not in by_id["001"]
    assert [by_id[i]["pareto"] for i in ("000", "002", "003")] == [True, True, False]
    assert by_id["002"]["state"] == "unfinished" and by_id["000"]["best_step"] == 20
    results.write(tmp_path, found)
    with (tmp_path / "results.csv").open() as file:
        assert [row["loss.alpha"] for row in csv.DictReader(file)] == ["0.1"] * 4


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_driver_takes_up_what_it_had_decided_and_what_it_never_heard_of(tmp_path: Path, has_journal: bool) -> None:
    trials = [
        recorded(tmp_path, "000", "finished", (100, 5.0, 1.0), (200, 6.0, 1.0)),
        recorded(tmp_path, "001", None, (100, 1.0, 1.0)),
    ]
    if has_journal:
        journal.write(tmp_path / "trials/000", Event("000", 0, 100, "CONTINUE", {"valid/elbo_nats": 5.0}))
        journal.write(tmp_path / "trials/001", Event("001", 1, 100, "STOP", {"valid/elbo_nats": 1.0}))
    rows = {t.id: Row(t, tmp_path / "trials" / t.id) for t in trials}
    for row in rows.values():
        row.read()
    base = Config().with_values({"train.steps": 200, "train.validate_every": 100})
    _, order = _judge_of_before(base, rows, SweepPlan(), None)
    assert [(e.step, e.decision) for e in rows["000"].events] == [(100, "CONTINUE"), (200, "END")]
    assert rows["001"].state == ("stopped" if has_journal else "waiting")
    assert order == 1 + max(e.order for row in rows.values() for e in row.events)
    assert journal.read(tmp_path / "trials/000", "000") == rows["000"].events, "and it is written down"


def test_what_was_known_at_the_beginning_is_known_again(store: Path, trained: Path, tmp_path: Path) -> None:
    base = harness.tiny_config(store)
    space = Space(uniform={"loss.alpha": (0.0, 1.0)})
    asked = Search(base, space, Goal(), "tpe", 0)
    harness.copied(trained, tmp_path / "old/trials/000")
    first = from_sweep.known(tmp_path / "new", tmp_path / "old", asked)
    assert [(k.state, dict(k.values), k.step) for k in first] == [("complete", {"loss.alpha": 0.01}, 8)]
    made = record.prepare(tmp_path / "new", base, space, samples=3, seed=0, sampler="tpe")
    from_sweep.kept(made, first).write(tmp_path / "new")
    harness.copied(trained, tmp_path / "old/trials/001")
    again: list[Any] = from_sweep.known(tmp_path / "new", tmp_path / "old", asked)
    assert again == first
