"""Writing a file so that it is there whole or not at all, also after a crash of the machine: the one way to do it.

A file is written under a temporary name beside its place, brought to the disk, and renamed; then the folder is brought
to the disk too. Its mode is what the umask gives, whoever writes it. What a killed writer left is hidden, ends in
`.tmp`, is never read, and is removed when the same file is next written.
"""

import contextlib
import csv
import errno
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

SUFFIX = ".tmp"
"""How the temporary names end."""
_ABANDONED_S = 600.0
_CHUNK_BYTES = 1 << 22
_CANNOT_SYNC = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF, errno.EISDIR),
    *(errno.EACCES, errno.EPERM),
)
"""What file systems answer that cannot bring a folder to the disk (or a folder that may be written but not read)."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of an empty file to write to within the block, which takes the place of `path` at its end.

    If the block fails, `path` is what it was before and the temporary file is gone. What a link points to is replaced
    and not the link; a device or pipe, which cannot be replaced, is written to.

    Raises:
        OSError: that names `path`, if it cannot be written.
    """
    path = _behind_links(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}{SUFFIX}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield fresh
        if fresh.stat().st_mode & 0o777 != mode:  # some libraries write another file, for its owner alone
            fresh.chmod(mode)
        sync(fresh)
        fresh.replace(path)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(fresh):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
    sync_folder(path.parent)
    _remove_abandoned(path)


def write(path: Path, content: str | bytes) -> None:
    """Write a file of text (UTF-8) or bytes; raises OSError as `replacing`."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, tree: Any) -> None:
    """Write a tree of plain values as indented JSON; raises OSError as `replacing`."""
    write(path, json.dumps(tree, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the head among them, as comma-separated values; raises OSError as `replacing`."""
    with replacing(path) as fresh, fresh.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def sync(path: Path) -> None:
    """Bring a file that was written to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder has, where its file system can."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def digest(path: Path) -> str:
    """Return the xxh3_128 of a file's content."""
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hashed.update(chunk)
    return hashed.hexdigest()


def remove_left(folder: Path) -> None:
    """Remove all that killed writers left in a folder; for who alone writes there."""
    for path in folder.glob(f".*{SUFFIX}"):
        path.unlink()


def _sync(path: Path, flags: int) -> None:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _behind_links(path: Path) -> Path:
    """Return where a link points to; a link to what has no path, as /dev/stdout, stays."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    return target if target.exists() or not path.exists() else path


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of a file left; one that is still at work has written within the last minutes."""
    with contextlib.suppress(OSError):
        now_s = path.stat().st_mtime  # by the clock of the file system
        for entry in os.scandir(path.parent):
            ours = entry.name.startswith(f".{path.name}.") and entry.name.endswith(SUFFIX)
            if ours and now_s - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S:
                os.unlink(entry.path)


def is_inside(name: str) -> bool:
    """Return whether a file that a manifest names stays in the manifest's folder, whoever wrote it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
