"""What a driver decided is decided the same by one that is told of it, wherever it was killed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sweep import journal
from cluster.sweep.goal import Goal
from cluster.sweep.journal import Event
from cluster.sweep.plan import Rule, Stopping
from cluster.sweep.schedulers import Judge, stock
from zfdist.config import Config

BASE = Config().with_values({"train.steps": 900, "train.validate_every": 100})
OFFERED = st.lists(st.tuples(st.integers(0, 7), st.floats(-5, 5).map(lambda v: round(v, 2))), max_size=60)


def fresh(rule: Rule) -> Judge:
    return Judge(stock(Stopping(rule, grace_steps=100), Goal(), BASE))


def told(judge: Judge, offered: Any, events: list[Event]) -> list[Event]:
    """Let trials give validations in a row until they are stopped, or at their last step; return all events."""
    events = list(events)
    for number, value in offered:
        trial = f"{number:03}"
        own = [e for e in events if e.trial == trial]
        if own and own[-1].decision != "CONTINUE":
            continue
        step = 100 * (len(own) + 1)
        metrics = {"valid/elbo_nats": value}
        decision = judge.decide(trial, {"step": step, **metrics}, is_last=step == 900)
        events.append(Event(trial, len(events), step, decision, metrics))
    return events


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median", "none"])
@settings(max_examples=60, deadline=None)
@given(offered=OFFERED, cut=st.integers(0, 60))
def test_a_judge_that_was_told_of_the_past_decides_the_rest_the_same(rule: Rule, offered: Any, cut: int) -> None:
    whole = told(fresh(rule), offered, [])
    past = told(fresh(rule), offered[:cut], [])
    again = fresh(rule)
    again.replay(journal.in_order(reversed(past)))
    assert told(again, offered[cut:], past) == whole


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median"])
def test_what_lags_behind_is_stopped(rule: Rule) -> None:
    offered = [(number, float(-number)) for _ in range(4) for number in range(8)]
    assert [e.trial for e in told(fresh(rule), offered, []) if e.decision == "STOP"]


def test_events_come_back_and_a_torn_line_is_none(tmp_path: Path) -> None:
    events = [Event("003", i, 100 * i, "CONTINUE", {"valid/elbo_nats": -1.5 * i}) for i in range(1, 4)]
    for event in events[:2]:
        journal.write(tmp_path, event)
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"order": 7, "st')
    assert journal.read(tmp_path, "003") == events[:2]
    journal.write(tmp_path, events[2])
    assert journal.read(tmp_path, "003") == events
    assert journal.read(tmp_path / "none", "003") == []
