"""Files that are packed or hold other files (gzip, bzip2, xz, zip, tar), told by their first bytes; read as a stream.

Nothing is unpacked to disk or held in memory whole, so that size and number of members do not matter.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

HEAD_BYTES = 1 << 16
MOST_LAYERS = 4
"""How deep packing may be nested: an archive can be made that holds itself."""
SUFFIXES = (".gz", ".bz2", ".xz", ".lzma")
"""What packing adds to the name of a file."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".tbz", ".txz")
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)
"""What a damaged or locked file or archive raises when it is read."""
FOREIGN = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it (zstd -d)"),
    (b"\x04\x22\x4d\x18", "packed by lz4; unpack it (lz4 -d)"),
    (b"\x1f\x9d", "packed by compress; unpack it (gzip -d)"),
)
"""First bytes of what may well hold data and is not read."""
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


class Member(NamedTuple):
    """A file, or one in an archive."""

    name: str
    """Its path in the archive (POSIX); "" for the file itself, packed or not."""
    head: bytes
    """Its first 64 KiB, unpacked; empty where there is a problem."""
    content: IO[bytes]
    """All of it, unpacked, from the start; good until the next member is asked for."""
    problem: str = ""
    """Why it is not read."""
    is_archive: bool = False
    """With a problem: whether it may hold files that nobody has seen."""


def members(path: Path) -> Iterator[Member]:
    """Yield the files that a file holds, or the file itself if it is no archive; of a zip archive in order of names.

    Archives in a tar archive are opened as well, but for zip archives, which cannot be read as a stream.
    Raises one of UNREADABLE when the file or the archive's structure is damaged; reading a member can raise the same.
    """
    with path.open("rb") as file:
        yield from _opened(file, "", MOST_LAYERS)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open the one file that a file is or holds; raises one of UNREADABLE, also if it holds none or several."""
    found = members(path)
    member = next(found, None)
    if member is None:
        raise OSError("an archive without files")
    if member.problem:
        raise OSError(member.problem)
    yield member.content
    if next(found, None) is not None:
        raise OSError("an archive of several files; unpack it")


def stem(name: str) -> str:
    """Return the name of what is packed: without .gz and the like."""
    place = PurePosixPath(name)
    return place.stem if place.suffix.lower() in SUFFIXES else place.name


def _opened(stream: IO[bytes], name: str, layers: int) -> Iterator[Member]:
    """Yield what a stream holds, itself called `name`."""
    head = exactly(stream, HEAD_BYTES)
    foreign = next((what for first, what in FOREIGN if head.startswith(first)), "")
    whole: IO[bytes] = io.BufferedReader(_Joined(head, stream), HEAD_BYTES)
    if foreign:
        yield Member(name, b"", whole, foreign, is_archive=True)
    elif head.startswith(_ZIP):
        if name or layers < MOST_LAYERS:
            yield Member(name, b"", whole, "a zip archive in another file; unpack that", is_archive=True)
        else:
            yield from _zip(stream, layers - 1)
    elif (inner := _unpacking(head, whole)) is not None or _is_tar(head):
        if not layers:
            problem = f"packed more than {MOST_LAYERS} times over; unpack it"
            yield Member(name, b"", whole, problem, is_archive=True)
        elif inner is not None:
            yield from _opened(inner, name, layers - 1)
        else:
            yield from _tar(whole, name, layers - 1)
    else:
        yield Member(name, head, whole)


def exactly(stream: IO[bytes], size: int) -> bytes:
    """Read `size` bytes; fewer only where the stream ends."""
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _unpacking(head: bytes, whole: IO[bytes]) -> Any:
    """Return the stream that a packed stream unpacks to; None if it is not packed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return gzip.GzipFile(fileobj=whole, mode="rb")
    if head.startswith(b"BZh") and head[4:10] in (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"):
        return bz2.BZ2File(whole)
    if head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return lzma.LZMAFile(whole)
    return None


def _is_tar(head: bytes) -> bool:
    """Tell by the check sum of its first header, which old tar files have as well."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _zip(file: IO[bytes], layers: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        # Some programs of Windows write backslashes between folders.
        items = [(item.filename.replace("\\", "/"), item) for item in archive.infolist()]
        files = sorted(((name, item) for name, item in items if name[-1:] != "/"), key=lambda pair: pair[0].encode())
        counts = Counter(name for name, _ in files)
        if "[Content_Types].xml" in counts:
            yield Member("", b"", io.BytesIO(), "an Office document; save it as text")
            return
        for name, item in files:
            problem = ""
            if item.flag_bits & 1:
                problem = "encrypted; unpack it with its password"
            elif counts[name] > 1:
                problem = f"{counts[name]} times in the archive; unpack it and give the folder"
            if problem:
                yield Member(name, b"", io.BytesIO(), problem)
                continue
            try:
                with archive.open(item) as content:
                    yield from _opened(content, name, layers)
            except UNREADABLE as error:
                yield Member(name, b"", io.BytesIO(), f"unreadable ({error})")


class _Header(tarfile.TarInfo):
    """A header that is damaged or missing is an error, where tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise EOFError(f"damaged or cut short: {error}") from None


def _tar(stream: IO[bytes], outer: str, layers: int) -> Iterator[Member]:
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        for item in archive:
            archive.members = []  # type: ignore[attr-defined]  # all headers would be kept
            name = PurePosixPath(outer, item.name.lstrip("/")).as_posix()
            content = archive.extractfile(item) if item.isreg() else None
            if item.isdir():
                continue
            if name in seen:
                yield Member(name, b"", io.BytesIO(), "twice in the archive; unpack it and give the folder")
            elif content is None:
                yield Member(name, b"", io.BytesIO(), "a link or device in an archive; unpack it and give the folder")
            else:
                yield from _opened(content, name, layers)
            seen.add(name)
        # To the end, so that check sums are looked at; another archive may stand there (cat a.tar b.tar).
        while rest := archive.fileobj.read(HEAD_BYTES):
            if rest.count(0) != len(rest):
                raise EOFError("more data after the end of the archive; unpack it with tar --ignore-zeros")


class _Joined(io.RawIOBase):
    """What was read of a stream already, and the rest of it."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part: memoryview | bytes = self._head[: len(buffer)]
        if part:
            self._head = self._head[len(part) :]
        else:
            part = self._rest.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)
