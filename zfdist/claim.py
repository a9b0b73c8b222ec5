"""One process at a time: a claim on what a folder holds, which ends with the process that has it.

A lock of the kernel (flock) where the file system has such; a killed holder gives it free by dying. Where it has none
(Lustre mounted without `-o flock`, some NFS), or one that other machines do not see (FUSE, NFS with `-o nolock`), a
file beside it that its holder renews, see `zfdist.lease`: what a killed one left is taken over once it was not renewed
for `lease.STALE_S`.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from zfdist.errors import ZfdistError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_POLL_S = 0.2
_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL_OPTIONS = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("local_lock=all", "local_lock=flock"),
    "lustre": ("localflock",),
    "cifs": ("nobrl", "nolock"),
}
"""With which of its options a file system keeps locks to the machine that asks for them, and tells nobody."""


class TakenError(ZfdistError):
    """Another process holds the claim."""

    def __init__(self, who: str) -> None:
        """`who` names its process and host."""
        super().__init__(who)
        self.who = who

    def __str__(self) -> str:
        return f"another process holds the claim ({self.who})"


@contextlib.contextmanager
def held(path: Path, *, wait_s: float = math.inf) -> Iterator[None]:
    """Hold the claim that the file `path` stands for within the block; the file is made and stays.

    Raises:
        TakenError: if another process still holds it after `wait_s`; without locks, after the time in which one that
            was left behind shows itself as such, if that is longer.
        OSError: if the file cannot be made.
    """
    deadline = time.monotonic() + wait_s
    with path.open("a+") as file:
        lock = _try_lock if _is_seen_by_others(path) else lambda descriptor: "no locks"
        while (found := lock(file.fileno())) == "taken":
            if time.monotonic() > deadline:
                file.seek(0)
                raise TakenError(file.read())
            time.sleep(_POLL_S)
        with _renewed(path, wait_s) if found == "no locks" else contextlib.nullcontext():
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def _is_seen_by_others(path: Path) -> bool:
    try:
        return locks_are_shared(_MOUNTS.read_text(), path.resolve())
    except OSError:
        return True  # no Linux


def locks_are_shared(mounts: str, path: Path) -> bool:
    """Return whether a kernel's locks under an absolute path reach whoever else sees the folder; /proc/self/mountinfo.

    On FUSE they do not, unless its program asks for them, which is not to be seen from outside.
    """
    best: tuple[int, str, list[str]] = -1, "", []
    for line in mounts.splitlines():
        of_mount, _, of_system = line.partition(" - ")
        words, (kind, _, options) = of_mount.split(), of_system.split(" ", 2)
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4]))
        if path.is_relative_to(point) and len(point.parts) >= best[0]:  # of two at one place the later one is seen
            best = len(point.parts), kind, f"{words[5]},{options}".split(",")
    _, kind, options_of_it = best
    if kind == "fuse" or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
        return False
    return not set(_LOCAL_OPTIONS.get(kind, ())) & set(options_of_it)


def _try_lock(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return "taken"
        if error.errno in _NO_LOCKS:
            return "no locks"
        raise
    return "ours"


@contextlib.contextmanager
def _renewed(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the claim by a file that is renewed; raises TakenError."""
    from zfdist import lease  # here, as it comes with the libraries of object stores, and few need it

    def end(who: str) -> None:
        print(f"error: {path} was taken over by another process ({who}); this one ends", file=sys.stderr, flush=True)
        os._exit(1)  # it stood still for so long that the other took it for dead: both must not write

    place = lease.Folder(path.parent)
    patience_s = max(wait_s, 1.5 * lease.STALE_S)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                lease.held(place, uuid.uuid4().hex, 0, wait_s=patience_s, name=f"{path.name}.lease", on_loss=end)
            )
        except lease.BusyError as error:
            raise TakenError(error.who) from None
        yield
