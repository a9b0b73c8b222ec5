"""Suggestions are a pure function of what is known; they keep to the space, and none trains what another trial does."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sweep.goal import Goal, Objective, Requirement
from cluster.sweep.search_space import Space, essence
from cluster.sweep.suggest import Known, Sampler, Search, suggest
from zfdist.config import Config

SPACE = Space(
    choice={"loss.kl.kind": ("constant", "linear")},
    uniform={"loss.kl.start": (0.1, 0.9)},
    loguniform={"optim.learning_rate": (1e-4, 1e-1), "model.hidden": (8, 64)},
)
TWO = (Objective(), Objective("valid/kl_nats_per_frame", "max"))


def search(sampler: Sampler = "tpe", goal: Goal | None = None, space: Space = SPACE) -> Search:
    return Search(Config(), space, goal or Goal(), sampler, seed=3)


def swept(asked: Search, count: int) -> list[Known]:
    """A sweep whose objective is best at a learning rate of 0.01, with trials of all ends."""
    known: list[Known] = []
    for number in range(count):
        made = suggest(asked, known, number)
        assert made is not None
        value = -abs(0.01 - made.values["optim.learning_rate"])
        objectives = [value, -value][: len(asked.goal.objectives)]
        misses = {str(r): r.missed_by(value) for r in asked.goal.requirements}
        ends: list[Any] = ["complete", "pruned", "complete", "failed"]
        known.append(Known(made.values, ends[number % 4], 100, objectives, misses, made.notes))
    return known


@pytest.mark.parametrize(
    ("sampler", "goal"),
    [
        ("tpe", Goal()),
        ("tpe", Goal(TWO, (Requirement("valid/kl_nats_per_frame", ">=", -0.005),))),
        ("nsga2", Goal(TWO)),
        ("gp", Goal()),
    ],
)
def test_the_same_is_suggested_again_from_the_same(sampler: Sampler, goal: Goal) -> None:
    asked = search(sampler, goal)
    known = swept(asked, 13 if sampler == "gp" else 24)
    for number in (0, 5, 12):
        again = suggest(asked, known[:number], number)
        assert again is not None and (again.values, again.notes) == (known[number].values, known[number].notes)


def test_suggestions_keep_to_the_space_and_differ() -> None:
    known = swept(search(), 30)
    for k in known:
        assert ("loss.kl.start" in k.values) == (k.values["loss.kl.kind"] == "linear")
        assert 1e-4 <= k.values["optim.learning_rate"] <= 1e-1
        assert isinstance(k.values["model.hidden"], int) and 8 <= k.values["model.hidden"] <= 64
    assert len({essence(Config(), k.values) for k in known}) == 30


def test_it_learns_and_what_runs_is_not_suggested_again() -> None:
    known = swept(search(), 40)
    errors = [abs(0.01 - k.values["optim.learning_rate"]) for k in known]
    assert sorted(errors[20:])[10] < sorted(errors[:10])[5], "the later half is nearer than the draws at the start"
    running = [*known, Known({**known[-1].values, "optim.learning_rate": 0.02}, "running")]
    assert suggest(search(), known, 40) != suggest(search(), running, 41)


def test_a_space_that_is_used_up_ends_the_search() -> None:
    small = search(space=Space(choice={"loss.kl.kind": ("constant", "linear")}))
    first = suggest(small, [], 0)
    assert first is not None
    second = suggest(small, [Known(first.values, "running")], 1)
    assert second is not None and second.values != first.values
    assert suggest(small, [Known(first.values, "complete", 1, [0.0]), Known(second.values, "running")], 2) is None


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-5, 1.0), st.sampled_from(["complete", "pruned", "failed", "running"]))))
def test_any_history_is_taken_also_what_lies_outside(history: list[tuple[float, Any]]) -> None:
    known = [
        Known({"optim.learning_rate": rate, "model.hidden": 8, "loss.kl.kind": "constant"}, state, 10, [rate])
        for rate, state in history
    ]
    made = suggest(search(), known, len(known))
    assert made is not None and 1e-4 <= made.values["optim.learning_rate"] <= 1e-1
