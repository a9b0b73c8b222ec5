"""Objectives, requirements, and which trials are best by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sweep.goal import Goal, Objective, Requirement, pareto_front, parse_objective, parse_requirement
from zfdist.config import ConfigError

TWO = Goal((Objective(), Objective("valid/kl_nats", "min")))
POINTS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_holds_exactly_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(TWO, points)
    assert any(front)
    for one, is_on in zip(points, front, strict=True):
        beaten = any(o != one and o[0] >= one[0] and o[1] <= one[1] for o in points)
        assert is_on == (not beaten)


def test_a_validation_that_keeps_to_what_is_required_comes_first() -> None:
    goal = Goal(requirements=(Requirement("valid/kl_nats_per_frame", ">=", 1.0),))
    high = {"step": 1, "valid/elbo_nats": 5.0, "valid/kl_nats_per_frame": 0.2}
    able = {"step": 2, "valid/elbo_nats": 1.0, "valid/kl_nats_per_frame": 1.5}
    assert goal.best([high, able]) == able and goal.best([high]) == high and goal.best([{"step": 3}]) is None
    assert goal.misses(high) == {"valid/kl_nats_per_frame>=1": pytest.approx(0.8)} and goal.is_met(able)


def test_what_is_typed() -> None:
    assert parse_objective("valid/kl_nats:min", "max") == Objective("valid/kl_nats", "min")
    assert parse_objective("valid/kl_nats", "min") == Objective("valid/kl_nats", "min")
    assert parse_requirement(" valid/kl_nats <= 1e3") == Requirement("valid/kl_nats", "<=", 1000.0)


@pytest.mark.parametrize("text", ["valid/elbo", "loss", "valid/kl_nats:more"])
def test_metrics_that_no_validation_writes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--metric .*(no validation writes it|must be METRIC)"):
        parse_objective(text, "max")


@pytest.mark.parametrize("text", ["valid/kl_nats", "valid/kl_nats>1", "valid/kl_nats>=x", "kl>=1", "valid/kl_nats>=1e"])
def test_requirements_that_cannot_be_understood_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--require"):
        parse_requirement(text)
