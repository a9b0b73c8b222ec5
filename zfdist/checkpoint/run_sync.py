"""The small files of a run in an object store, on a node: sent by the worker that writes them, followed by the others.

What lies in a run folder itself (metrics, log, config, result, events) is sent by rank 0, whole, when it has changed;
what every worker writes into hangs/ and profile/, by that worker; hidden files stay where they are. Who follows fetches
what has changed, of files that grow only the end.
"""

import contextlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from zfdist import lease
from zfdist.container import at_home
from zfdist.lease import Lease
from zfdist.object_store import CACHE, TRIES, Object, ObjectFolder, StorageError, without_options

SEND_S = 3.0
FOLLOW_S = 1.0
_NOT_SENT = ("stop", lease.NAME)
_FOLDERS = ("hangs", "profile")
_GROWING = (".jsonl", ".txt", ".log")
_OVERLAP_BYTES = 256


class WorkingCopy:
    """A run folder on this node, and the place in a store that it is a copy of."""

    def __init__(self, place: ObjectFolder, folder: Path, held: Lease | None = None) -> None:
        """Use `folder` as a copy of `place`; `held` is the claim of the worker that writes."""
        self.place = place
        self.folder = folder
        self.shown = without_options(place.uri)
        """The run's URI as people should read it."""
        self._held = held
        self._sent: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, Object] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def push(self) -> None:
        """Send the run's own files that have changed, and delete those that are gone; raises StorageError."""
        with self._lock:
            present = self._own_files()
            for name, path in present.items():
                stat = path.stat()
                if self._sent.get(name) != (stat.st_size, stat.st_mtime_ns):
                    self.place.upload(path, name)
                    self._sent[name] = (stat.st_size, stat.st_mtime_ns)
            for name in self._sent.keys() - present.keys():
                self.place.delete([name])
                del self._sent[name]

    def _own_files(self) -> dict[str, Path]:
        """Return what is sent from here, by name; the files in `_FOLDERS` have a worker's number in their names."""
        own = [path for below in _FOLDERS for path in (self.folder / below).glob("*")]
        if self._held is not None:
            own += self.folder.iterdir()
        return {p.relative_to(self.folder).as_posix(): p for p in own if p.is_file() and _is_sent(p.name)}

    def pull(self, below: str = "") -> None:
        """Fetch the run's own files that have changed, and delete those that are gone; raises StorageError."""
        with self._lock:
            there = {n: o for n, o in self.place.objects(below, recursive=False).items() if _is_sent(Path(n).name)}
            for name, object in there.items():
                path = self.folder / name
                if self._seen.get(name) != object or not path.is_file():
                    if not self._is_extended(path, name, object):
                        self.place.download(name, path)
                    self._seen[name] = object
            for name in [n for n in self._seen if n not in there and n.rpartition("/")[0] == below]:
                (self.folder / name).unlink(missing_ok=True)
                del self._seen[name]

    def replace(self) -> None:
        """Make the run's own files here what they are in the store, where the truth is; raises StorageError."""
        for path in self.folder.iterdir():
            if path.is_file() and _is_sent(path.name):
                path.unlink()
        self.pull()
        for name in self._seen:
            stat = (self.folder / name).stat()
            self._sent[name] = (stat.st_size, stat.st_mtime_ns)

    def check_owner(self, *, now: bool = False) -> None:
        """Raise BusyError if another process has taken the run over; asks the store if it must be known `now`."""
        if self._held is not None:
            self._held.check(now=now)

    def _is_extended(self, path: Path, name: str, object: Object) -> bool:
        """Fetch only the end of a file that grew; False if it is of another kind, or its beginning was rewritten."""
        if path.suffix not in _GROWING or not path.is_file():
            return False
        have = path.stat().st_size
        if not 0 < have <= object.bytes:
            return False
        start = max(0, have - _OVERLAP_BYTES)
        end = self.place.read(name, start)
        with path.open("r+b") as file:
            file.seek(start)
            known = file.read()
            if end[: len(known)] != known:
                return False
            file.write(end[len(known) :])
        return True


def folder_of(uri: str, cache: Path = CACHE, kind: str = "runs") -> Path:
    """Return where this node keeps its working copy of a run, or a copy of another kind."""
    shown = without_options(uri)
    return at_home(cache) / kind / f"{shown.rpartition('/')[2]}-{xxhash.xxh3_64_hexdigest(uri.encode())}"


@contextlib.contextmanager
def opened(
    uri: str, rank: int, *, owner: str, launch: int = 0, cache: Path = CACHE, tries: int = TRIES, wait_s: float = 60.0
) -> Iterator[WorkingCopy]:
    """Train in a working copy of a run within the block; rank 0 holds the run's claim and sends what it writes.

    Args:
        uri: of the run.
        rank: of this worker; what others than rank 0 write beside checkpoints is sent if they fail.
        owner: see `Lease`.
        launch: see `Lease`.
        cache: where this node keeps copies of what is remote.
        tries: how often in a row something may fail before it counts.
        wait_s: how long the claim of another process is waited for.

    Raises:
        BusyError: if another process trains the run.
        StorageError: if the store cannot be used.
    """
    place, folder = ObjectFolder(uri, tries=tries), folder_of(uri, cache)
    if rank != 0:
        copy = WorkingCopy(place, folder)
        with _errors_sent(place, folder, rank), repeated(copy.push, SEND_S):
            yield copy
        return
    with lease.held(place, owner, launch, wait_s=wait_s) as claim:
        copy = WorkingCopy(place, folder, claim)
        copy.replace()
        try:
            with repeated(copy.push, SEND_S):
                yield copy
        except Exception:
            with contextlib.suppress(StorageError, OSError):
                copy.push()  # what went wrong is in its logs
            raise
        copy.push()


@contextlib.contextmanager
def followed(uri: str, *, cache: Path = CACHE) -> Iterator[WorkingCopy]:
    """Follow a run that is trained elsewhere, in a folder of this process; what it writes appears within seconds.

    Raises:
        StorageError: if the store cannot be used.
    """
    folder = folder_of(uri, cache, f"followed/{uuid.uuid4().hex[:8]}")
    copy = WorkingCopy(ObjectFolder(uri), folder)
    try:
        copy.pull()
        with repeated(copy.pull, FOLLOW_S):
            yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def repeated(act: Callable[[], None], every_s: float) -> Iterator[None]:
    """Repeat an act in a thread within the block; what fails is done the next time."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(StorageError, OSError):
                act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _errors_sent(place: ObjectFolder, folder: Path, rank: int) -> Iterator[None]:
    """Send the error log of a worker that fails, under its own name: its node may be gone when it is asked for."""
    try:
        yield
    except Exception:
        with contextlib.suppress(StorageError, OSError):
            place.upload(folder / "error.log", f"error-worker-{rank}.log")
        raise


def _is_sent(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_SENT and not name.endswith(".tmp")
