"""A sweep on the screen: a board on a terminal, a line for each change elsewhere; at the end a table of the best."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table

from jobs.cli.command import duration
from jobs.cli.screen import Screen
from zfdist.run_protocol import OVER, VALID_ELBO

if TYPE_CHECKING:
    from cluster.sweep.goal import Objective
    from cluster.sweep.row import Row

_WIDTH = 160  # off a terminal
_OVER = (*OVER, "failed")
_QUIET_S = 300.0
"""Off a terminal: after so long without a line the headline is said, so that a log tells that it goes on."""
_BEST = 10
_MOST_RESULTS = 50
_HEADINGS = {VALID_ELBO: "valid elbo", "valid/kl_nats": "kl", "valid/nats_per_sample": "nats/sample"}


class Board:
    """Shows the trials of a sweep: how many are how far, which run, which are best, and how long it will take.

    Args:
        names: that are swept.
        steps: of a trial.
        total: trials, also those that are still to be suggested; None for those that are shown.
        objectives: that trials are compared by, the first decides; None for the validation ELBO.
    """

    def __init__(
        self,
        names: Sequence[str],
        steps: int,
        total: int | None = None,
        objectives: "Sequence[Objective] | None" = None,
    ) -> None:
        self._names, self._steps, self._total = list(names), steps, total
        self._metric, self._sign = VALID_ELBO, -1.0
        self._metrics = dict(_HEADINGS)
        if objectives:
            self._metric, self._sign = objectives[0].metric, -1.0 if objectives[0].mode == "max" else 1.0
            self._metrics |= {o.metric: o.metric.partition("/")[2] for o in objectives if o.metric not in _HEADINGS}
        self._started_s = time.monotonic()
        self._done_before: float | None = None
        self._rows: Sequence[Row] = ()
        self._states: dict[str, str] = {}
        self._best: float | None = None
        self._console = Screen(_WIDTH)
        self._said_s = self._started_s
        self._live = (
            Live(_Picture(self), console=self._console, refresh_per_second=2) if self._console.is_terminal else None
        )

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line, above the board if there is one."""
        self._said_s = time.monotonic()
        self._console.print(line, markup=False, highlight=False)

    def show(self, rows: Sequence["Row"]) -> None:
        """Show the present state: the board, or a line for each trial whose state has changed."""
        self._rows = rows
        if self._done_before is None:  # at the start, as the time is counted from there
            self._done_before = sum(self._done())
        if self._live is not None:
            if not self._live.is_started:
                self._live.start()
            return
        for row in rows:
            before = self._states.get(row.trial.id)
            if before is None and row.state in _OVER:
                self._states[row.trial.id] = row.state  # it was over when this command began
            elif row.state != self._states.setdefault(row.trial.id, "waiting"):
                self._states[row.trial.id] = row.state
                self.say(self._change(row))
        if time.monotonic() - self._said_s > _QUIET_S:
            self.say(self.headline())

    def print_results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Print the best trials by objective, best first, and the Pareto front if there are several objectives."""
        front = [result for result in results if result.get("pareto")]
        if any("pareto" in result for result in results):
            self._print(f"Pareto front: {len(front)} of {len(results)} trials, none better in all objectives", front)
        more = f", the best {_MOST_RESULTS} of {len(results)}: all in results.csv" if results[_MOST_RESULTS:] else ""
        self._print(f"trials by objective, each at its best validation{more}", results[:_MOST_RESULTS])

    def _print(self, title: str, results: Sequence[Mapping[str, Any]]) -> None:
        table = self._columns(title, step="best at")
        for result in results:
            state = result["state"] if result.get("feasible", True) else f"{result['state']}, infeasible"
            table.add_row(*self._cells(result["id"], result["values"], state, result["best_step"], result))
        self._console.print(table)

    def headline(self) -> str:
        """Return how many trials are how far, and how long the rest will take."""
        states = [row.state for row in self._rows]
        total = max(self._total or 0, len(states))
        over = sum(state in _OVER for state in states)
        running = states.count("running")
        counts = [(f"{running} running", True), (f"{total - over - running} waiting", True)]
        counts += [(f"{states.count(state)} {state}", state in states) for state in ("stopped", "diverged", "failed")]
        elapsed_s = time.monotonic() - self._started_s
        said = ", ".join(text for text, is_said in counts if is_said)
        return f"{over}/{total} trials over ({said})   {duration(elapsed_s)}   ETA {self._eta(total, elapsed_s)}"

    def tables(self, lines: int) -> list[Table]:
        """Return the running trials and the best ones, in so many lines of a screen together."""
        running = [row for row in self._rows if row.state == "running"]
        ranked = sorted((r for r in self._rows if self._metric in r.latest), key=lambda r: self._loss(r))
        room = max(2, lines - 4)
        best = ranked[: min(_BEST, max(1, room // 2))]
        shown = running[: max(1, room - len(best))]
        hidden = f" ({len(running) - len(shown)} more)" if len(running) > len(shown) else ""
        return [self._rows_table(f"running{hidden}", shown), self._rows_table(f"best {len(best)}", best)]

    def _rows_table(self, title: str, rows: Sequence["Row"]) -> Table:
        table = self._columns(title)
        for row in rows:
            table.add_row(*self._cells(row.trial.id, row.trial.values, row.state, row.step, row.latest))
        return table

    def _loss(self, row: "Row") -> float:
        return min(self._sign * e.metrics[self._metric] for e in row.events if self._metric in e.metrics)

    def _change(self, row: "Row") -> str:
        """Return a line about a trial whose state has changed."""
        if row.state == "running":
            values = ", ".join(f"{name} {_short(value)}" for name, value in row.trial.values.items())
            return f"trial {row.trial.id} begins: {values}"
        if row.state == "waiting":
            return f"trial {row.trial.id} is saved and waits, its last validation at step {row.step}/{self._steps}"
        said = f"trial {row.trial.id} {row.state} at step {row.step}/{self._steps}"
        if row.error is not None:
            said += f": {row.error}"
        if self._metric in row.latest:
            loss = self._loss(row)
            is_best = row.state != "failed" and (self._best is None or loss < self._best)
            self._best = loss if is_best else self._best
            said += f", best {self._metric} {self._sign * loss:.5g}" + ", the best so far" * is_best
        return f"{said}   [{self.headline()}]"

    def _eta(self, total: int, elapsed_s: float) -> str:
        """Return the time left if the rest goes as the part done since the start went; early stops make it less."""
        now = sum(self._done())
        done = now - (self._done_before or 0.0)
        return duration(elapsed_s * (total - now) / done) if done > 0 else "..."

    def _done(self) -> list[float]:
        """Return the part of each trial that needs no more time."""
        return [1.0 if row.state in _OVER else row.step / self._steps for row in self._rows]

    def _columns(self, title: str, step: str = "step") -> Table:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in ("trial", *(name.partition(".")[2] for name in self._names), "state"):
            table.add_column(name, no_wrap=True)
        for name in (step, *self._metrics.values()):
            table.add_column(name, justify="right", no_wrap=True)
        return table

    def _cells(
        self, trial: str, values: Mapping[str, Any], state: str, step: int, latest: Mapping[str, Any]
    ) -> list[str]:
        swept = [_short(values.get(name, "")) for name in self._names]
        forms = {"valid/nats_per_sample": ".4f"}
        numbers = [_number(latest.get(name), forms.get(name, ".2f")) for name in self._metrics]
        return [trial, *swept, state, f"{step}/{self._steps}", *numbers]


class _Picture:
    """The board at the size that the terminal has when it is drawn."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._board.headline()
        yield from self._board.tables(options.max_height - 1)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
