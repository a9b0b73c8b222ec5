"""Where a store is written: a folder, or a folder in an object store; the same few steps for both.

It is known by its path or URI alone, so that workers on any machine can write the shards of one store. A file is made
whole on a disk of the machine that makes it, and gets its name in one step.
"""

import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import xxhash

from zfdist import atomic_io
from zfdist.claim import TakenError, held
from zfdist.container import cache_home
from zfdist.data.manifest import ShardEntry, StoreError
from zfdist.object_store import Missing, ObjectFolder, is_remote, without_options

UNFINISHED = "unfinished"
"""The folder of what is of use only until the store is complete."""
_TEMPORARY = ".tmp"
_ABANDONED_S = 86_400.0
"""A file is fetched, or a shard made, in less."""
_CLAIM_S = 45.0
"""Longer than a claim that a killed process left in an object store is waited for."""

Where = Path | str
"""A folder, or the URI of one in an object store."""


class Output(Protocol):
    """The folder of a store that is being written; names are relative to it."""

    shown: str
    """What messages call it."""

    def claimed(self) -> AbstractContextManager[None]:
        """Hold the right to write there within the block; raises StoreError if another process has it."""

    def names(self) -> list[str]:
        """Return the names of all files that are there."""

    def read(self, name: str, start: int = 0, count: int | None = None) -> bytes | None:
        """Return bytes of a file, from `start` on and at most `count`; None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole."""

    def fresh(self) -> AbstractContextManager[Path]:
        """Give the path of a new file on this machine for the block, to be written, and then kept or forgotten."""

    def keep(self, fresh: Path, name: str) -> None:
        """Give a file that was written its name."""

    def is_whole(self, entry: ShardEntry) -> bool:
        """Return whether a shard is there as it was written (in an object store: with its size)."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""

    def tidy(self) -> None:
        """Delete what is of no use once the store is complete, and what killed writers left."""


def output_at(where: Where) -> Output:
    """Return the folder that a path or URI means; raises StorageError for a URI that is none of a store."""
    return _Bucket(str(where)) if is_remote(where) else _Folder(Path(where))


class _Folder:
    """A folder of this machine, or one that several share."""

    def __init__(self, root: Path) -> None:
        self.shown = str(root)
        self._root = root

    @contextmanager
    def claimed(self) -> Iterator[None]:
        unfinished = self._root / UNFINISHED
        unfinished.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(held(unfinished / "lock", wait_s=0))
            except TakenError as error:
                raise _taken(self.shown, error.who) from None
            for left in unfinished.glob(f"[!.]*{_TEMPORARY}"):  # by killed writers, whom nobody else follows
                left.unlink(missing_ok=True)
            yield

    def names(self) -> list[str]:
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"{self._root}: is a file; choose another --out")
        return [path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file()]

    def read(self, name: str, start: int = 0, count: int | None = None) -> bytes | None:
        try:
            with (self._root / name).open("rb") as file:
                file.seek(start)
                return file.read(-1 if count is None else count)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_io.write(path, content)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        folder = self._root / UNFINISHED
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}{_TEMPORARY}"  # two who make the same at once are not in each other's way
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, fresh: Path, name: str) -> None:
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        atomic_io.sync(fresh)
        fresh.rename(path)
        atomic_io.sync_folder(path.parent)

    def is_whole(self, entry: ShardEntry) -> bool:
        try:
            with mapped(self._root / entry.path) as content:
                return xxhash.xxh3_128_hexdigest(content) == entry.xxh3_128
        except (OSError, ValueError):
            return False

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self._root / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        atomic_io.remove_left(self._root)
        shutil.rmtree(self._root / UNFINISHED, ignore_errors=True)


class _Bucket:
    """A folder in an object store."""

    def __init__(self, uri: str) -> None:
        self.shown = without_options(uri)
        self._place = ObjectFolder(uri)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        from zfdist import lease  # here, as folders need none

        def end(who: str) -> None:
            print(f"error: {self.shown} was taken over by another process ({who}); this one ends", file=sys.stderr)
            os._exit(1)  # it stood still for so long that the other took it for dead: both must not write

        with ExitStack() as stack:
            try:
                owner, name = uuid.uuid4().hex, f"{UNFINISHED}/lock.json"
                stack.enter_context(lease.held(self._place, owner, 0, wait_s=_CLAIM_S, name=name, on_loss=end))
            except lease.BusyError as error:
                raise _taken(self.shown, error.who) from None
            yield

    def names(self) -> list[str]:
        return list(self._place.sizes())

    def read(self, name: str, start: int = 0, count: int | None = None) -> bytes | None:
        try:
            return self._place.read(name, start, count)
        except Missing:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._place.write(name, content)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        with scratch() as folder:
            yield folder / "fresh"

    def keep(self, fresh: Path, name: str) -> None:
        self._place.upload(fresh, name)
        fresh.unlink()

    def is_whole(self, entry: ShardEntry) -> bool:
        folder = entry.path.rpartition("/")[0]
        return self._place.sizes(folder).get(entry.path) == entry.bytes

    def delete(self, names: Iterable[str]) -> None:
        self._place.delete(names)

    def tidy(self) -> None:
        self._place.delete_folder(UNFINISHED)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder of this machine for the block, beside its other copies of what is remote.

    Those that killed processes left are removed once nothing was written there for _ABANDONED_S.
    """
    parent = cache_home() / "zfdist" / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        with contextlib.suppress(OSError):  # it was removed meanwhile
            written_s = max(path.stat().st_mtime for path in (other, *other.iterdir()))
            if time.time() - written_s > _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Give the bytes of a file without reading it into memory; raises OSError or (empty file) ValueError."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
        memoryview(mapping) as content,
    ):
        yield content


def _taken(shown: str, who: str) -> StoreError:
    return StoreError(f"{shown}: another process is writing it ({who}); wait for it or choose another --out")
