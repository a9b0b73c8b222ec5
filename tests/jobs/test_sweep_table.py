"""The board of a sweep: lines of changes off a terminal, and on one as much as fits."""

from pathlib import Path

import pytest
from rich.console import Console

from cluster.sweep.journal import Event
from cluster.sweep.row import Row
from cluster.sweep.search_space import Trial
from jobs.cli import sweep_table
from jobs.cli.sweep_table import Board


def row(number: int, state: str, *elbos: float) -> Row:
    name = f"{number:03}"
    events = [Event(name, i, 10 * (i + 1), "CONTINUE", {"valid/elbo_nats": e}) for i, e in enumerate(elbos)]
    return Row(Trial(name, {"loss.alpha": 0.1 * number}), Path(name), state, events)


def test_each_change_is_one_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with Board(["loss.alpha"], 30, 3) as board:
        for rows in (
            [row(0, "waiting"), row(1, "stopped", -9.0)],  # the second was over before
            [row(0, "running"), row(1, "stopped", -9.0)],
            [row(0, "running", -5.0), row(1, "stopped", -9.0)],
            [row(0, "finished", -5.0, -4.0, -3.0), row(1, "stopped", -9.0), row(2, "running")],
            [row(0, "finished", -5.0, -4.0, -3.0), row(1, "stopped", -9.0), row(2, "failed")],
        ):
            board.show(rows)
            board.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("   ")[0] for line in lines] == [
        "trial 000 begins: loss.alpha 0",
        "trial 000 finished at step 30/30, best valid/elbo_nats -3, the best so far",
        "trial 002 begins: loss.alpha 0.2",
        "trial 002 failed at step 0/30",
    ]
    assert "3/3 trials over (0 running, 0 waiting, 1 stopped, 1 failed)" in lines[-1]


def test_the_time_left_is_counted_from_where_the_command_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("jobs.cli.sweep_table.time.monotonic", lambda: now_s)
    board = Board(["loss.alpha"], 30, 4)
    board.show([row(0, "stopped", -9.0), row(1, "running"), row(2, "waiting"), row(3, "waiting")])
    now_s = 60.0
    board.show([row(0, "stopped", -9.0), row(1, "finished", -9.0, -8.0), row(2, "running"), row(3, "waiting")])
    assert board.headline().endswith("60 s   ETA 2 min"), board.headline()


def test_a_log_tells_now_and_then_that_it_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Board(["loss.alpha"], 30, 3) as board:
        board.show([row(0, "running", -5.0)])
        monkeypatch.setattr(sweep_table, "_QUIET_S", -1.0)
        board.show([row(0, "running", -5.0)])
    assert capsys.readouterr().out.splitlines()[1].startswith("0/3 trials over (1 running, 2 waiting)")


@pytest.mark.parametrize("height", [8, 20, 50])
def test_a_thousand_trials_fit_into_the_window(height: int) -> None:
    board = Board(["loss.alpha"], 30, 1000)
    rows = [row(i, "running" if i % 9 == 0 else "finished", -float(i)) for i in range(800)]
    board.show(rows)
    console = Console(width=100, height=height, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in (board.headline(), *board.tables(height - 1)):
        console.print(part)
    text = console.export_text()
    assert text.count("\n") <= height and "711/1000 trials over (89 running, 200 waiting)" in text
    assert "running (" in text and "000" in text.partition("best")[2]
