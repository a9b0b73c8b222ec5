"""A claim where there are no locks: an object or file that its holder renews, and that others may take once it is not.

It is for runs in object stores, and for folders on file systems that cannot lock (see `zfdist.claim`).

A store has no locks that die with their holder, so a claim that has not changed for `STALE_S` of the observer's own
clock counts as left behind. A holder that was cut off and comes back reads another name there, and must stop. Two who
take a stale claim in the same moment both look again after a pause, and only the one who wrote last goes on; even if
both slipped through, neither could mix its files with the other's (see `zfdist.checkpoint.remote_checkpointer`).
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from zfdist import atomic_io
from zfdist.object_store import Missing, StorageError, without_options

NAME = "lock.json"
RENEW_S = 4.0
STALE_S = 20.0
_SETTLE_S = 1.0
_READS = 10


class BusyError(StorageError):
    """Another process trains the run, or has taken it over."""

    def __init__(self, message: str, who: str = "") -> None:
        """`who` names its process and host."""
        super().__init__(message)
        self.who = who


class Holds(Protocol):
    """Where a claim lies: a `Place` in a store, or a `Folder`."""

    uri: str

    def read(self, name: str) -> bytes:
        """Return what is called `name`; raises Missing if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write it whole."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete what is there of these."""


class Folder:
    """A folder as a place for claims."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; what fails there raises StorageError."""
        self.uri = str(folder)
        self._folder = folder

    def read(self, name: str) -> bytes:
        """Return the content of a file; raises Missing if there is none."""
        with _told():
            return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file."""
        with _told():
            atomic_io.write(self._folder / name, content)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
        for name in names:
            with _told():
                (self._folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{error.filename}: no such file") from None
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None


@dataclass
class Lease:
    """One holder's claim; renewed in a thread while `held` lasts."""

    place: Holds
    owner: str
    """Who wants the run: the same for all launches of one command, which take it over from each other at once."""
    launch: int
    """Which of the owner's launches this is; an older one gives way."""
    name: str = NAME
    on_loss: Callable[[str], None] = lambda who: None
    """Called in the thread that renews, with who has taken over."""
    _ended: threading.Event = field(default_factory=threading.Event)
    _lost_to: str | None = None

    def acquire(self, wait_s: float) -> None:
        """Write the claim once nobody else holds it.

        Raises:
            BusyError: if another process still renews its claim after `wait_s`.
        """
        deadline = time.monotonic() + wait_s
        seen, since = None, time.monotonic()
        while True:
            found = self._read()
            if found != seen:
                seen, since = found, time.monotonic()
            is_stale = time.monotonic() - since > STALE_S
            if found is None or is_stale or self._supersedes(found):
                self._write()
                if found is None or is_stale:
                    time.sleep(_SETTLE_S)
                left = self._read()
                if left is not None and self._supersedes(left):
                    return
            if time.monotonic() > deadline:
                who = str((found or {}).get("who"))
                raise BusyError(f"{self._run} is being trained by another process ({who})", who)
            time.sleep(0.5)

    def check(self, *, now: bool = False) -> None:
        """Raise BusyError if another has taken over; asks the store if it must be known `now`."""
        if now:
            self._look()
        if self._lost_to is not None:
            raise BusyError(f"{self._run} was taken over by another process ({self._lost_to}); this one ends")

    def release(self) -> None:
        """Give the run free, if it is still ours."""
        self._ended.set()
        with contextlib.suppress(StorageError):
            if self._is_mine(self._read()):
                self.place.delete([self.name])

    def renew(self) -> None:
        """Renew until released or lost; a store that does not answer is asked again."""
        while not self._ended.wait(RENEW_S) and self._lost_to is None:
            with contextlib.suppress(StorageError):
                self._look()
                if self._lost_to is None and not self._ended.is_set():
                    self._write()
        if self._lost_to is not None:
            self.on_loss(self._lost_to)

    @property
    def _run(self) -> str:
        return without_options(self.place.uri)

    def _look(self) -> None:
        found = self._read()
        if found is not None and not self._supersedes(found):
            self._lost_to = str(found["who"])

    def _supersedes(self, found: dict[str, Any]) -> bool:
        # An older launch of ours may have looked just before we wrote, and renew its claim over ours: it gives way when
        # it looks again, as we renew too.
        return bool(found["owner"] == self.owner and found["launch"] <= self.launch)

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and (found["owner"], found["launch"]) == (self.owner, self.launch)

    def _read(self) -> dict[str, Any] | None:
        content = b""
        for _ in range(_READS):
            try:
                content = self.place.read(self.name)
                found = json.loads(content)
                if isinstance(found, dict) and {"owner", "launch", "who"} <= found.keys():
                    return found
            except Missing:
                return None
            except ValueError:
                pass
            time.sleep(0.1)  # replaced while it was read: size and content come by two requests
        # Torn by a crash: nobody renews it.
        return {"owner": None, "launch": 0, "who": "a damaged claim", "content": content.hex()}

    def _write(self) -> None:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        claim = {"owner": self.owner, "launch": self.launch, "who": who, "renewed_s": time.time()}
        self.place.write(self.name, json.dumps(claim).encode())


@contextlib.contextmanager
def held(
    place: Holds,
    owner: str,
    launch: int,
    *,
    wait_s: float,
    name: str = NAME,
    on_loss: Callable[[str], None] = lambda who: None,
) -> Iterator[Lease]:
    """Hold a claim within the block; the arguments are those of `Lease`.

    Raises:
        BusyError: if another process holds it and renews it.
    """
    lease = Lease(place, owner, launch, name, on_loss)
    lease.acquire(wait_s)
    threading.Thread(target=lease.renew, daemon=True).start()
    try:
        yield lease
    finally:
        lease.release()
