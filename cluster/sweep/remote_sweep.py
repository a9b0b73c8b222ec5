"""A sweep in an object store, as the process that drives it sees it: a folder that follows it, and what it sends.

Every trial is a run in the store (see `zfdist.checkpoint.remote_checkpointer`); the machines of a sweep share nothing
else.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from zfdist import lease
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.object_store import join
from zfdist.run_options import RunLocation
from zfdist.run_protocol import STOP

RESULTS = ("sweep.json", "results.json", "results.csv", "spent.json")


def fetch_suggestions(copy: WorkingCopy) -> None:
    """Have here what was suggested in a sweep, however many trials that are; raises StorageError."""
    for name in copy.place.objects("trials", recursive=True):
        if name.endswith("/suggestion.json"):
            copy.pull(name.rpartition("/")[0])


class SweepStore:
    """A sweep's place in a store; all methods raise StorageError."""

    def __init__(self, copy: WorkingCopy, store: RunLocation) -> None:
        """Drive the sweep that `copy` follows, for the owner of `store`."""
        self._copy = copy
        self._store = store
        self._has_asked = False

    @property
    def shown(self) -> str:
        """The sweep's URI as people should read it."""
        return self._copy.shown

    @property
    def uri(self) -> str:
        """The sweep's URI."""
        return self._store.uri

    def of_trial(self, trial: str) -> RunLocation:
        """Return where a trial lives."""
        return self._store._replace(uri=join(self._store.uri, f"trials/{trial}"))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that drives this sweep within the block, not yet asked to stop; raises BusyError."""
        with lease.held(self._copy.place, self._store.owner, 0, wait_s=1.5 * lease.STALE_S):
            self._copy.place.delete([STOP])
            yield

    def fetch(self, trials: Iterable[str]) -> None:
        """Have the records of these trials here."""
        for trial in trials:
            self._copy.pull(f"trials/{trial}")

    def send_results(self) -> None:
        """Send what this process has written about the sweep."""
        for name in RESULTS:
            if (self._copy.folder / name).is_file():
                self._copy.place.upload(self._copy.folder / name, name)

    def send(self, trial: str, name: str) -> None:
        """Send a file that this process has written into a trial's folder."""
        self._copy.place.upload(self._copy.folder / "trials" / trial / name, f"trials/{trial}/{name}")

    def pass_on_stop(self, folder: Path) -> None:
        """Ask all trials to save and end, if this process was asked to."""
        if not self._has_asked and (folder / STOP).exists():
            self._copy.place.write(STOP, b"")
            self._has_asked = True
