"""Data in an object store: each node keeps a copy of what it uses, fetched once, checked, whole or not there.

    CACHE/data/NAME-HASH/       by the hash of the manifest, so what a copy holds never changes
        manifest.json  train-00000-....arrow  ...

Whoever comes first fetches a file while the others on the node wait; a file has its name once its size and hash are
those of the manifest. Remove the folder to have the space back. Here too: which files of this machine were hashed and
found good, so that they are not hashed at every start.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import xxhash

from zfdist import atomic_io
from zfdist.claim import held
from zfdist.container import at_home, cache_home
from zfdist.data.manifest import NAME, ShardCorrupt, ShardEntry, StoreError
from zfdist.object_store import CACHE, Missing, ObjectFolder, without_options

_ATTEMPTS = 2


class Cache:
    """This node's copy of a data set in an object store."""

    def __init__(self, uri: str, cache: Path = CACHE) -> None:
        """Read the manifest of the data at `uri`, which must be reachable; nothing else is fetched yet.

        Raises:
            StoreError: if there is no manifest.
            StorageError: if the store cannot be used.
        """
        self._place = ObjectFolder(uri)
        self.shown = without_options(uri)
        try:
            content = self._place.read(NAME)
        except Missing:
            raise StoreError(
                f"{self.shown}: no {NAME}; copy a folder there that zfdist prepare wrote, e.g. by `aws s3 sync`"
            ) from None
        folder = f"{self.shown.rpartition('/')[2]}-{xxhash.xxh3_64_hexdigest(content)}"
        self.root = at_home(cache) / "data" / folder
        self.root.mkdir(parents=True, exist_ok=True)
        self._once(NAME, lambda path: path.is_file() and path.read_bytes() == content)

    def fetch(self, name: str, size: int, digest: str | None = None, *, again: bool = False) -> None:
        """Have a file of the data here, with the size and (if given) xxh3_128 of the manifest; `again`: it is damaged.

        Raises:
            ShardCorrupt: if the store has another content than the manifest says.
            StorageError: if the store cannot be used.
        """
        damaged = (self.root / name).stat().st_ino if again and (self.root / name).exists() else None

        def is_there(path: Path) -> bool:
            if not path.is_file() or path.stat().st_size != size:
                return False
            return path.stat().st_ino != damaged  # another process may have mended it meanwhile

        def is_right(path: Path) -> bool:
            return path.stat().st_size == size and digest in (None, atomic_io.digest(path))

        self._once(name, is_there, is_right)

    def _once(
        self, name: str, is_there: Callable[[Path], bool], is_right: Callable[[Path], bool] = lambda path: True
    ) -> None:
        """Fetch a file unless it is there, as the only process of this node."""
        path = self.root / name
        if is_there(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(self.root / f".{path.name}.lock"):
            for _ in range(_ATTEMPTS):
                if is_there(path):
                    return
                fresh = path.with_name(f".{path.name}.new")
                self._download(name, fresh)
                if is_right(fresh):
                    fresh.replace(path)  # who has mapped a damaged one keeps it: it is not cut short under him
                    return
                fresh.unlink()
            raise ShardCorrupt(
                f"{self.shown}/{name}: its content is not what its manifest says; copy it again from an intact store"
            )

    def _download(self, name: str, path: Path) -> None:
        try:
            self._place.download(name, path)
        except Missing:
            raise ShardCorrupt(f"{self.shown}/{name}: missing; copy it again from an intact store") from None


def is_verified(path: Path, entry: ShardEntry) -> bool:
    """Return whether this very file was hashed by this user on this machine, and found good."""
    mark = _mark(path, entry)
    try:
        return mark.exists()
    except OSError:
        return False


def remember(path: Path, entry: ShardEntry) -> None:
    """Note that it was; without a place to write, the shard is merely hashed again next time."""
    mark = _mark(path, entry)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(path: Path, entry: ShardEntry) -> Path:
    """Return the file whose existence says so."""
    stat = path.stat()
    identity = f"{stat.st_dev}/{stat.st_ino}/{stat.st_size}/{stat.st_mtime_ns}/{entry.xxh3_128}"
    return cache_home() / "zfdist" / "verified" / xxhash.xxh3_128_hexdigest(identity.encode())
