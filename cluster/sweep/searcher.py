"""Which trial Ray Tune begins next: those that were begun, then the listed ones, then what a search suggests."""

from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from cluster.sweep.record import SUGGESTION, state
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.row import Row
from cluster.sweep.search_space import Trial, trial_id
from cluster.sweep.suggest import Known, Search, suggest
from zfdist.run_protocol import OVER

Job = Callable[[Row], dict[str, Any]]


class NextTrial(Searcher):  # type: ignore[misc]
    """Gives Tune the trials of a sweep, as many at a time as its limit.

    Args:
        rows: of all trials by their ids; what is suggested is added.
        job: what a trial's process needs to know.
        folder: of the sweep.
        stop: a file that asks to begin no more.
        search: what suggests trials; None if all are listed.
        to_suggest: how many it has still to think of.
        before: what it knows beside this sweep's trials.
        limit: trials that are under way at a time.
        store: where the sweep lives if not in `folder`; it is sent what is suggested.
    """

    def __init__(
        self,
        rows: MutableMapping[str, Row],
        job: Job,
        folder: Path,
        stop: Path,
        search: Search | None,
        to_suggest: int,
        before: Sequence[Known],
        limit: int,
        store: SweepStore | None,
    ) -> None:
        super().__init__()
        self._rows, self._job, self._folder, self._stop = rows, job, folder, stop
        self._search, self._to_suggest, self._before = search, to_suggest, before
        self._limit, self._store = limit, store
        self._waiting = deque(sorted((r for r in rows.values() if r.state not in OVER), key=lambda row: -row.step))
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Return the config of the next trial for Tune; None for now, or FINISHED."""
        if self._stop.exists():
            return Searcher.FINISHED
        if len(self._live) >= self._limit:
            return None
        row = self._next()
        if row is None:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return {"job": self._job(row)}

    def set_limit(self, trials: int) -> None:
        """Let so many trials be under way at a time."""
        self._limit = trials

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a trial's place is free."""
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the run folders tell all."""

    def restore(self, checkpoint_path: str) -> None:
        """Have kept nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Be nothing in the snapshot that Tune makes of itself, which nobody reads."""
        return {}

    def _next(self) -> Row | None:
        while self._waiting:
            row = self._waiting.popleft()
            if state(row.folder) not in OVER:
                return row
            row.state = str(state(row.folder))  # stopped by name while it waited
        if self._search is None or self._to_suggest <= 0:
            return None
        known = [*self._before, *(row.known(self._search.goal) for row in self._rows.values())]
        number = len(self._rows)
        made = suggest(self._search, known, number)
        if made is None:
            self._to_suggest = 0
            return None
        name = trial_id(number)
        made.write(self._folder / "trials" / name)
        if self._store is not None:
            self._store.send(name, SUGGESTION)
        self._to_suggest -= 1
        self._rows[name] = Row(Trial(name, made.values), self._folder / "trials" / name, notes=made.notes)
        return self._rows[name]
