"""A sweep on the screen: a live table on a terminal, a plain one every 20 s elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from jobs.cli.command import duration
from jobs.cli.screen import Screen

if TYPE_CHECKING:
    from cluster.sweep.watch import Row

_EVERY_S = 20.0
_WIDTH = 160  # off a terminal
_OVER = ("finished", "stopped", "diverged", "failed")


class Board:
    """Shows the trials of a sweep: swept values, step and validation, and how much is left."""

    def __init__(self, names: Sequence[str], steps: int) -> None:
        self._names = list(names)
        self._steps = steps
        self._started_s = time.monotonic()
        self._shown_s = float("-inf")
        self._done_before: float | None = None
        self._console = Screen(_WIDTH)
        self._live = Live(console=self._console, refresh_per_second=2) if self._console.is_terminal else None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line, above a live table."""
        self._console.print(line, markup=False, highlight=False)

    def show(self, rows: Sequence["Row"]) -> None:
        """Show the present state; off a terminal at most every 20 s."""
        if self._live is not None:
            if not self._live.is_started:
                self._live.start()
            self._live.update(self._table(rows))
        elif time.monotonic() - self._shown_s >= _EVERY_S:
            self._shown_s = time.monotonic()
            self._console.print(self._table(rows))

    def print_results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Print the trials by objective, best first."""
        table = self._columns("trials by objective, each at its best validation", step="best at")
        for result in results:
            table.add_row(*self._cells(result["id"], result["values"], result["state"], result["best_step"], result))
        self._console.print(table)

    def _table(self, rows: Sequence["Row"]) -> Table:
        over = sum(row.state in _OVER for row in rows)
        elapsed_s = time.monotonic() - self._started_s
        title = f"{over}/{len(rows)} trials over   {duration(elapsed_s)}   ETA {self._eta(rows, elapsed_s)}"
        table = self._columns(title)
        for row in rows:
            table.add_row(*self._cells(row.trial.id, row.trial.values, row.state, row.step, row.latest or {}))
        return table

    def _eta(self, rows: Sequence["Row"], elapsed_s: float) -> str:
        """Return the time left if the rest goes as the part done since the start went; early stops make it less."""
        parts = [1.0 if row.state in _OVER else row.step / self._steps for row in rows]
        if self._done_before is None:
            self._done_before = sum(parts)
        done = sum(parts) - self._done_before
        return duration(elapsed_s * (len(rows) - sum(parts)) / done) if done > 0 else "..."

    def _columns(self, title: str, step: str = "step") -> Table:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in ("trial", *(name.partition(".")[2] for name in self._names), "state"):
            table.add_column(name, no_wrap=True)
        for name in (step, "valid elbo", "kl", "nats/sample"):
            table.add_column(name, justify="right", no_wrap=True)
        return table

    def _cells(
        self, trial: str, values: Mapping[str, Any], state: str, step: int, latest: Mapping[str, Any]
    ) -> list[str]:
        swept = [_short(values.get(name, "")) for name in self._names]
        numbers = [
            _number(latest.get("valid/elbo_nats"), ".2f"),
            _number(latest.get("valid/kl_nats"), ".2f"),
            _number(latest.get("valid/nats_per_sample"), ".4f"),
        ]
        return [trial, *swept, state, f"{step}/{self._steps}", *numbers]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
