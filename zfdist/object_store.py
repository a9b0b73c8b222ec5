"""A folder in an object store (S3, GCS, Azure): read, write, list, delete, with patience and plain words for failures.

`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, or any other URI that pyarrow.fs takes. For S3, `?region=...`, and for a
server of your own `?endpoint_override=HOST:PORT&scheme=http`, may follow. Credentials are found as their clouds have it
(role of the machine, ~/.aws, environment), and never stand in a URI, which is printed and logged.

An object is there whole or not at all: a store shows it once its last byte has come.
"""

import contextlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pyarrow import fs

from zfdist import atomic_io
from zfdist.errors import ZfdistError

T = TypeVar("T")

CACHE = Path("~/.cache/zfdist")
"""Where a node keeps its copies of what is remote, unless told otherwise."""
TRIES = 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_CHUNK_BYTES = 1 << 23
_S3_OPTIONS = ("region", "scheme", "endpoint_override")
_DENIED = "access is denied; give this machine a role or credentials that may read, write, list and delete"
_NON_RETRYABLE = {
    "NO_SUCH_BUCKET": "there is no such bucket; make it, or correct the name",
    "bucket does not exist": "there is no such bucket; make it, or correct the name",
    "ACCESS_DENIED": _DENIED,
    "INVALID_ACCESS_KEY_ID": "the credentials are not known there; correct ~/.aws/credentials or the machine's role",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong; correct ~/.aws/credentials or the machine's role",
    "EXPIRED_TOKEN": "the credentials have run out; get new ones",
    "HTTP status 403": _DENIED,
    "HTTP status 301": "the bucket is in another region; add ?region=... to the URI",
}


class StorageError(ZfdistError):
    """A store that cannot be used; the message names the URI, what was tried, the cause and the remedy."""


class Missing(StorageError):
    """An object that is not there."""


class Object(NamedTuple):
    """What a listing says of an object."""

    bytes: int
    modified_ns: int


def is_remote(where: str | os.PathLike[str]) -> bool:
    """Return whether `where` is the URI of a store and not a folder."""
    return "://" in str(where)


def join(uri: str, name: str) -> str:
    """Return the URI of what is called `name` below `uri`."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def without_options(uri: str) -> str:
    """Return a URI as people should read it."""
    return uri.partition("?")[0]


def probe(uri: str) -> float:
    """Write, list, read and delete a small object below `uri`; return the seconds that it took.

    Raises:
        StorageError: with the cause and the remedy, after one try.
    """
    started = time.monotonic()
    place = ObjectFolder(uri, tries=1)
    name, content = f".probe-{uuid.uuid4().hex}", os.urandom(64)
    place.write(name, content)
    try:
        if place.sizes().get(name) != len(content) or place.read(name) != content:
            raise StorageError(f"{uri}: gives back something else than was written; is a cache in between?")
    finally:
        place.delete([name])
    return time.monotonic() - started


class ObjectFolder:
    """A folder in a store; names are relative to it. Safe to use from several threads."""

    def __init__(self, uri: str, *, tries: int = TRIES) -> None:
        """Open `uri`; what fails is tried `tries` times, with growing pauses in between.

        Raises:
            StorageError: if the URI means no store, or (S3 without a region) its region cannot be found.
        """
        self.uri = uri
        self._tries = tries
        self._fs, self._base = _open(uri)

    def read(self, name: str, start: int = 0, count: int | None = None) -> bytes:
        """Return the bytes of an object from `start` on, at most `count`; raises Missing if there is none."""

        def call() -> bytes:
            with self._fs.open_input_file(self._path(name)) as file:
                there = max(0, file.size() - start)
                wanted = there if count is None else min(there, count)
                if not wanted:
                    return b""
                file.seek(start)
                content: bytes = file.read(wanted)
                _refuse_short(len(content), wanted)
                return content

        return self._patiently("read", name, call)

    def write(self, name: str, content: bytes) -> None:
        """Write a whole object."""

        def call() -> None:
            with self._fs.open_output_stream(self._path(name)) as file:
                file.write(content)

        self._patiently("write", name, call)

    def upload(self, path: Path, name: str) -> None:
        """Write a file's content to an object."""

        def call() -> None:
            with path.open("rb") as source, self._fs.open_output_stream(self._path(name)) as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)

        self._patiently("write", name, call)

    def download(self, name: str, path: Path) -> None:
        """Write an object's content to a file, which has its name once it is whole; raises Missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_io.replacing(path) as fresh:

            def call() -> None:
                with self._fs.open_input_file(self._path(name)) as source, fresh.open("wb") as target:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
                    _refuse_short(target.tell(), source.size())

            self._patiently("read", name, call)

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the bytes of every object in the folder `below` and its folders by name; empty if there are none."""
        return {name: object.bytes for name, object in self.objects(below).items()}

    def objects(self, below: str = "", *, recursive: bool = True) -> dict[str, Object]:
        """Return what is in the folder `below`, by name; empty if there is nothing."""

        def call() -> dict[str, Object]:
            chosen = fs.FileSelector(self._path(below), recursive=recursive, allow_not_found=True)
            files = [f for f in self._fs.get_file_info(chosen) if f.type == fs.FileType.File]
            return {f.path[len(self._base) + 1 :]: Object(f.size, f.mtime_ns or 0) for f in files}

        return self._patiently("list", below, call)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, one after the other; those that are not there are no error."""

        def call() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(self._path(name))

        for name in names:
            self._patiently("delete", name, call)

    def delete_folder(self, name: str) -> None:
        """Delete everything below a folder."""

        def call() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_dir(self._path(name))

        self._patiently("delete", name, call)

    def _refuse_missing_bucket(self) -> None:
        """Raise StorageError if there is no bucket: stores answer as if only the object were missing."""
        bucket = self._base.split("/")[0]
        with contextlib.suppress(OSError):
            if self._fs.get_file_info(bucket).type == fs.FileType.NotFound:
                raise StorageError(f"{without_options(self.uri)}: {_NON_RETRYABLE['NO_SUCH_BUCKET']}")

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}".rstrip("/")

    def _patiently(self, verb: str, name: str, call: Callable[[], T]) -> T:
        """Call until it succeeds; pauses double from one to the next, and vary so that many nodes do not knock at once.

        Raises:
            StorageError: for what no patience mends at once, else after the last try.
        """
        where = join(self.uri, name) if name else self.uri
        for attempt in range(1, self._tries + 1):
            try:
                return call()
            except FileNotFoundError as error:
                if _remedy(error) is not None:
                    raise _explained(where, verb, error, attempt) from None
                self._refuse_missing_bucket()
                raise Missing(f"{without_options(where)}: no such object") from None
            except OSError as error:
                if error.errno is not None and error.filename is not None:
                    raise  # about a file of ours: the disk is full, or it is gone
                if attempt == self._tries or _remedy(error) is not None:
                    raise _explained(where, verb, error, attempt) from None
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
            time.sleep(pause_s * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")


def _open(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path in it."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise StorageError(f"{parts.scheme}://...: no credentials in a URI; put them into ~/.aws or the machine's role")
    try:
        if parts.scheme != "s3":
            filesystem, path = fs.FileSystem.from_uri(uri)
            return filesystem, path.rstrip("/")
        options = dict(parse_qsl(parts.query))
        unknown = sorted(options.keys() - set(_S3_OPTIONS))
        if unknown:
            raise StorageError(f"{uri}: unknown option {unknown[0]}; there are {', '.join(_S3_OPTIONS)}")
        if not parts.netloc:
            raise StorageError(f"{uri}: names no bucket; write s3://BUCKET/PREFIX")
        if "region" not in options:
            has_own_server = "endpoint_override" in options
            options["region"] = "us-east-1" if has_own_server else fs.resolve_s3_region(parts.netloc)
        patience = fs.AwsStandardS3RetryStrategy(max_attempts=1)  # ours, which counts and tells
        filesystem = fs.S3FileSystem(
            **options, retry_strategy=patience, connect_timeout=5, request_timeout=30, allow_delayed_open=True
        )
        return filesystem, (parts.netloc + parts.path).rstrip("/")
    except (OSError, ValueError) as error:
        raise _explained(uri, "open", error, 1) from None


def _refuse_short(found: int, expected: int) -> None:
    if found != expected:
        raise OSError(f"the connection broke after {found:,} of {expected:,} bytes")


def _remedy(error: Exception) -> str | None:
    return next((remedy for sign, remedy in _NON_RETRYABLE.items() if sign in str(error)), None)


def _explained(where: str, verb: str, error: Exception, tries: int) -> StorageError:
    cause = re.sub(r"^When .*?: (?=AWS Error)|; Details:.*| \(Request ID.*|\s+$", "", " ".join(str(error).split()))
    times = f"tried {tries} times" if tries > 1 else "tried once"
    remedy = _remedy(error) or "look at the network and at the store, then give the same command again"
    return StorageError(f"{without_options(where)}: could not {verb} it ({times}; {cause}): {remedy}")
