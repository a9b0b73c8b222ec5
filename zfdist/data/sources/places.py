"""Where raw data are read: a folder, or a folder in an object store, which is listed and read a file at a time."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import xxhash

from zfdist.claim import held
from zfdist.container import cache_home
from zfdist.data.output import scratch
from zfdist.errors import ZfdistError
from zfdist.object_store import Missing, Object, ObjectFolder, StorageError, is_remote, without_options

LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYRIGHT", "COPYING")
Source = Path | str
"""A folder (or file) of this machine, or the URI of one in an object store."""


class SourceError(ZfdistError):
    """Input that cannot be made a data set; the message names the files or options."""


def is_hidden(name: str) -> bool:
    """Tell of the name of a file or folder whether it is passed over."""
    return name[0] == "." or name == "__MACOSX" or name.endswith(":Zone.Identifier")


def shown(source: Source) -> str:
    """Return what messages call a source."""
    return without_options(str(source)) if is_remote(str(source)) else str(source)


def objects(uri: str) -> dict[str, Object]:
    """Return what is in a folder of a store by name, in the order of the bytes of the names, hidden things left out.

    Raises SourceError if there is nothing, StorageError if the store cannot be used.
    """
    found = ObjectFolder(uri).objects()
    names = [name for name in found if name and not any(is_hidden(part or ".") for part in name.split("/"))]
    seen = {name: found[name] for name in sorted(names, key=str.encode)}
    if not seen:
        raise SourceError(f"{shown(uri)}: no such folder, or nothing in it")
    return seen


@contextmanager
def local(source: Source, name: str) -> Iterator[Path]:
    """Give the path of a file of a source for the block; from a store it is fetched, and removed afterwards.

    Raises StorageError if the store cannot be used.
    """
    if not is_remote(str(source)):
        yield Path(source) / name
        return
    with scratch() as folder:
        path = folder / PurePosixPath(name).name
        with contextlib.suppress(Missing):  # opening it says that it is gone
            ObjectFolder(str(source)).download(name, path)
        yield path


def mirrored(source: Source, fetching: Callable[[str], None] = lambda name: None) -> Path:
    """Return a source as a folder or file of this machine; one in a store is copied to the cache of this user.

    The copy is named by what the store lists, so that it is used again and never out of date. `fetching` is told of
    every file before it is fetched.
    Raises SourceError if there is nothing, StorageError if the store cannot be used.
    """
    if not is_remote(str(source)):
        return Path(source)
    uri, is_file = str(source), False
    try:
        listed = objects(uri)
    except SourceError:
        uri, name = _parent(uri)
        found = ObjectFolder(uri).objects(recursive=False)
        if name not in found:
            raise
        listed, is_file = {name: found[name]}, True
    identity = "\0".join(f"{name}\0{object.bytes}\0{object.modified_ns}" for name, object in listed.items())
    folder = cache_home() / "zfdist" / "sources" / xxhash.xxh3_128_hexdigest(f"{uri}\0{identity}".encode())
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "copy"
    with held(folder / "lock"):
        place = ObjectFolder(uri)
        for name, object in listed.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != object.bytes:
                fetching(name)
                place.download(name, path)
    return root / next(iter(listed)) if is_file else root


def licence_beside(source: Source) -> str:
    """Return the text of a licence file in the source (or beside the source file), or nothing."""
    if is_remote(str(source)):
        place = ObjectFolder(str(source))
        for name in sorted(place.objects(recursive=False)):
            if name.upper().startswith(LICENCE_NAMES):
                return place.read(name).decode(errors="replace")
        return ""
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.upper().startswith(LICENCE_NAMES):
            return path.read_text(errors="replace")
    return ""


def _parent(uri: str) -> tuple[str, str]:
    """Return the URI of the folder that an object is in, and its name there."""
    path, mark, options = uri.partition("?")
    folder, _, name = path.rstrip("/").rpartition("/")
    if folder.endswith(":/"):
        raise StorageError(f"{shown(uri)}: no such folder, or nothing in it")
    return folder + mark + options, name
