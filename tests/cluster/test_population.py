"""Population based training as a function: who copies whom, with what, and the schedule that was followed."""

import csv
from pathlib import Path

import harness
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sweep import population
from cluster.sweep.goal import Objective
from cluster.sweep.population import Member
from cluster.sweep.search_space import Space
from jobs.reporting import schedule_figure
from zfdist import run_protocol, train, world
from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config, ConfigError

SPACE = Space(
    choice={"loss.kl.kind": ("constant", "linear")},
    uniform={"loss.kl.start": (0.1, 0.9)},
    loguniform={"loss.alpha": (1e-3, 1.0), "optim.learning_rate": (1e-4, 1e-1)},
)
OBJECTIVES = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=8, max_size=8)


def evolve(seed: int = 0) -> population.Next:
    return population.evolving(Config(), SPACE, Objective(), 8, seed)


@settings(max_examples=40, deadline=None)
@given(OBJECTIVES, st.integers(1, 50))
def test_the_worst_quarter_copies_the_best_and_the_others_go_on(objectives: list[float | None], number: int) -> None:
    before = [m._replace(objective=o) for m, o in zip(evolve()(0, []), objectives, strict=True)]
    if all(o is None for o in objectives):
        with pytest.raises(ConfigError, match="all 8 members diverged"):
            evolve()(number, before)
        return
    after = evolve()(number, before)
    assert after == evolve()(number, before), "a function of what was found"
    assert [m.id for m in after] == [m.id for m in before]
    alive = sorted((o for o in objectives if o is not None), reverse=True)
    own = {m.id: m for m in before}
    for m in after:
        assert m.parent is not None
        parent = own[m.parent]
        assert parent.objective is not None
        if m.parent == m.id:
            assert m.values == own[m.id].values
        else:
            assert parent.objective >= alive[: max(1, 8 // 4)][-1]
        assert 1e-3 <= m.values["loss.alpha"] <= 1.0 and 1e-4 <= m.values["optim.learning_rate"] <= 1e-1
        assert ("loss.kl.start" in m.values) == (m.values["loss.kl.kind"] == "linear")
        Config().with_values(m.values)
    assert sum(o is None for o in objectives) <= sum(m.parent != m.id for m in after) <= 8


def test_a_generation_is_written_before_it_is_begun_and_read_again(tmp_path: Path) -> None:
    first = population.begun(tmp_path, 0, [], evolve())
    assert population.begun(tmp_path, 0, [], evolve(seed=1)) == first == evolve()(0, [])


def test_the_schedule_is_what_the_best_was_trained_with(tmp_path: Path) -> None:
    def member(name: str, parent: str | None, alpha: float, objective: float | None) -> Member:
        return Member(name, parent, {"loss.alpha": alpha}, objective)

    lineage = [
        [member("000", None, 0.1, 1.0), member("001", None, 0.2, 2.0)],
        [member("000", "001", 0.3, 5.0), member("001", "001", 0.2, 3.0)],
        [member("000", "000", 0.3, None), member("001", "000", 0.4, 7.0)],
    ]
    line = population.write(tmp_path, lineage, [10, 20, 25], Objective())
    assert [m.values["loss.alpha"] for m in line] == [0.2, 0.3, 0.4]
    with (tmp_path / "schedule.csv").open() as file:
        assert [(r["from_step"], r["to_step"], r["loss.alpha"]) for r in csv.DictReader(file)] == [
            ("0", "10", "0.2"), ("10", "20", "0.3"), ("20", "25", "0.4"),
        ]  # fmt: skip
    drawn = schedule_figure.draw(tmp_path)
    assert drawn is not None and drawn.stat().st_size > 5_000
    base = Config().with_values({"train.steps": 25})
    until, following = population.following_schedule(tmp_path, base, 2)
    assert until == [10, 20, 25]
    assert [m.values["loss.alpha"] for m in following(1, [])] == [0.3, 0.3, 0.4, 0.4]
    assert len({m.values["train.seed"] for m in following(0, [])} | {base.train.seed}) == 3
    with pytest.raises(ConfigError, match=r"is for train\.steps = 25, and here are 20000"):
        population.following_schedule(tmp_path, Config(), 2)
    with pytest.raises(ConfigError, match=r"holds no schedule\.json"):
        population.following_schedule(tmp_path / "none", base, 2)


@pytest.mark.parametrize(
    ("space", "size", "interval", "message"),
    [
        (Space(uniform={"model.hidden": (8, 64)}), 8, 100, r"model\.hidden cannot change while a run is trained"),
        (SPACE, 3, 100, "--population 3: must be 4 or more"),
        (SPACE, 8, 20_000, r"--interval-steps 20000: must be below train\.steps = 20000"),
    ],
)
def test_what_cannot_be(space: Space, size: int, interval: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        population.refuse(Config(), space, size, interval)


def test_a_member_goes_on_from_its_parents_checkpoint_with_its_own_values(
    store: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    population.inherit(trained, run)
    population.inherit(tmp_path / "none", run)
    assert checkpoint.steps(run) == checkpoint.steps(trained)[-1:] == [8]
    config = harness.tiny_config(store, train__steps=12, loss__alpha=0.5, optim__learning_rate=1e-3)
    train.train(config, run, world.connect(), harness.Recorder())
    lines = [r for r in run_protocol.records(run) if "weights/alpha" in r]
    assert lines and all(r["step"] > 8 and r["weights/alpha"] == 0.5 for r in lines)
    assert checkpoint.verify(checkpoint.folder_of(trained, 8)), "the parent's is as it was"
