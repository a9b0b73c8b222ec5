"""What becomes of a run: every end, and every way in which workers can be in trouble."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray")

from cluster.run.heartbeat import Heartbeat, Member, WorkerStatus
from cluster.run.policy import FALSE_STARTS, End, counts, team_size, trouble, what_next
from zfdist.run_options import Range

FINISHED = End("finished", 10)
STOPPED = End("stopped", 5)
GROWN = End("stopped", 5, "there is room for 1 worker more", planned=True)
LOST = End("lost", 5, "lost worker 1 on 10.0.0.2: the process died")
TAKEN = End("lost", 5, "10.0.0.2 is taken away", planned=True)
REFUSED = End("refused", 0, error=ValueError("no"))
UNSTARTED = End("unstarted", 0)


@pytest.mark.parametrize(
    ("end", "deaths", "false_starts", "stop_asked", "expected"),
    [
        (FINISHED, 0, 0, False, "over"),
        (FINISHED, 0, 0, True, "over"),
        (STOPPED, 0, 0, True, "over"),
        (STOPPED, 0, 0, False, "over"),
        (GROWN, 0, 0, False, "again"),
        (GROWN, 99, 0, False, "again"),
        (GROWN, 0, 0, True, "over"),
        (LOST, 1, 0, False, "again"),
        (LOST, 2, 0, False, "again"),
        (LOST, 3, 0, False, "give up"),
        (LOST, 1, 0, True, "over"),
        (TAKEN, 2, 0, False, "again"),
        (REFUSED, 0, 0, False, "give up"),
        (REFUSED, 0, 0, True, "give up"),
        (UNSTARTED, 0, FALSE_STARTS - 1, False, "again"),
        (UNSTARTED, 0, FALSE_STARTS, False, "give up"),
    ],
)
def test_every_end_has_its_answer(end: End, deaths: int, false_starts: int, stop_asked: bool, expected: str) -> None:
    move = what_next(end, deaths=deaths, max_failures=2, false_starts=false_starts, stop_asked=stop_asked)
    assert move == expected


def test_only_what_nobody_announced_is_a_death() -> None:
    assert [counts(end) for end in (FINISHED, STOPPED, GROWN, LOST, TAKEN, REFUSED, UNSTARTED)] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]


@given(
    low=st.integers(1, 9),
    more=st.integers(0, 9),
    room=st.integers(0, 30),
    others=st.integers(0, 30),
    enough_for_s=st.floats(0, 60),
)
def test_a_team_keeps_within_its_range_and_within_what_is_reserved(
    low: int, more: int, room: int, others: int, enough_for_s: float
) -> None:
    reserved = min(low + more, max(0, room - others))
    size = team_size(Range(low, low + more), reserved=reserved, room=room, enough_for_s=enough_for_s, settle_s=20)
    if reserved < low:
        assert size is None
    elif enough_for_s >= 20 or reserved == min(low + more, room):
        assert size == reserved, "it takes all it has once there is no more to wait for, or it waited"
    else:
        assert size is None, "more may be there in a moment"


def test_a_range_reads_as_it_is_typed() -> None:
    assert [Range.parsed("2"), Range.parsed("1:3")] == [(2, 2), (1, 3)]
    assert [str(Range(2, 2)), str(Range(1, 3))] == ["2", "1:3"]


def seen(rank: int, *, age_s: float = 0.2, still_s: float = 0.1, at: str = "", waits: bool = False) -> WorkerStatus:
    nothing: Any = None
    member = Member(rank, f"10.0.0.{rank}", f"node{rank}", 100 + rank, nothing, nothing)
    return WorkerStatus(member, Heartbeat(7, still_s, at, waits), age_s)


def of(*workers: WorkerStatus, alive: str = "012") -> str | None:
    return trouble(workers, {f"node{i}" for i in alive}, hang_timeout_s=60, lease_s=30)


def test_no_trouble_while_all_breathe_and_move() -> None:
    assert of() is None
    assert of(seen(0), seen(1, age_s=34, still_s=59)) is None


def test_a_machine_that_is_gone_is_named_at_once() -> None:
    assert of(seen(0), seen(1), alive="0") == "lost worker 1 on 10.0.0.1: the machine is gone"


def test_a_silent_worker_is_named_after_its_lease_ran_out() -> None:
    assert of(seen(0), seen(1, age_s=36)) == "lost worker 1 on 10.0.0.1: no sign of life for 36 s"


def test_of_workers_that_stand_still_the_one_that_does_not_wait_is_named() -> None:
    waiting = seen(0, still_s=64, at="world.py:40 in any", waits=True)
    stuck = seen(1, still_s=63, at="loader.py:9 in read")
    message = of(waiting, stuck)
    assert message is not None and message.startswith("worker 1 on 10.0.0.1 made no progress for 63 s (at loader.py:9")
    assert of(waiting._replace(heartbeat=waiting.heartbeat._replace(still_s=61)), seen(1, still_s=59)) is None, (
        "not yet judged"
    )


def test_a_silent_worker_is_named_before_those_that_wait_for_it() -> None:
    waiting = seen(0, still_s=64, at="world.py:40 in any", waits=True)
    assert of(waiting, seen(1, age_s=20)) == "lost worker 1 on 10.0.0.1: no sign of life for 20 s"


def test_if_all_wait_all_are_named() -> None:
    both = [seen(rank, still_s=70, at="world.py:40 in any", waits=True) for rank in (0, 1)]
    assert "worker 0 on 10.0.0.0, worker 1 on 10.0.0.1 made no progress" in (of(*both) or "")
