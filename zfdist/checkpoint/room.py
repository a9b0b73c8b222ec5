"""A disk that is full: one sentence that names the folder and the machine, wherever in a run it is found."""

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from zfdist.checkpoint.folder import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SIGNS = ("No space left on device", "Disk quota exceeded")
_REMEDY = "free some space and start again"


class NoRoomError(CheckpointError):
    """Something that was not written since a disk is full; all checkpoints are intact. Another try would end alike."""


def no_room(error: BaseException, folder: Path, signs: Sequence[str] = ()) -> NoRoomError | None:
    """Return the sentence for an error that says that a disk is full; None for any other.

    Args:
        error: whose own file is named if it has one.
        folder: where was written.
        signs: words by which a library says so that gives no reason, beside those of the system.
    """
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if not is_full and not any(sign in str(error) for sign in (*_SIGNS, *signs)):
        return None
    name = error.filename if isinstance(error, OSError) else None
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else folder
    cause = str(error).strip().splitlines()[0]
    return NoRoomError(f"{place} on {socket.gethostname()} could not be written ({cause}; {_left(place)})")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raise NoRoomError, on this worker, for a disk that turns out to be full while the block writes to `folder`."""
    try:
        yield
    except OSError as error:
        full = no_room(error, folder)
        if full is None:
            raise
        raise NoRoomError(f"{full}; the run's checkpoints are intact: {_REMEDY}") from None


def _left(place: Path) -> str:
    nearest = next((path for path in (place, *place.absolute().parents) if path.exists()), Path("/"))
    return f"{shutil.disk_usage(nearest).free / 2**20:,.1f} MiB left"
