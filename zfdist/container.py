"""What the container or job that this process runs in gives it: CPUs, processes and a home.

A machine's own numbers (`os.cpu_count`) say nothing about its affinity and control groups: of 64 CPUs a container may
have the time of two.
"""

import errno
import functools
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Where the hierarchies are mounted, within /sys/fs/cgroup: version 2 alone or beside version 1, and version 1 by name.
_VERSION_2 = ("", "unified")
_VERSION_1 = {"cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu"), "pids": ("pids",)}


def cpus(root: Path = Path("/")) -> int:
    """Return how many whole CPUs this process may use, at least 1: no more than its affinity and its quota.

    Args:
        root: the folder that holds proc/ and sys/.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        quota, _, period = _read(group / "cpu.max").strip().partition(" ")
        allowed = min(allowed, _quota(quota, period))
        allowed = min(allowed, _quota(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")))
    return max(1, int(allowed))


def processes_left(root: Path = Path("/")) -> int | None:
    """Return how many more processes and threads the control groups allow, None for any number."""
    groups = list(_groups(root, "pids"))
    left = [_number(_read(group / "pids.max")) - _number(_read(group / "pids.current"), other=0) for group in groups]
    finite = [int(number) for number in left if math.isfinite(number)]
    return max(0, min(finite)) if finite else None


@functools.cache
def user_home() -> Path:
    """Return this user's home, or a folder in its stead for a bare number of a user, as containers run under."""
    try:
        return Path.home()
    except RuntimeError:
        return _stand_in()


def cache_home() -> Path:
    """Return where this user keeps what can be made again: XDG_CACHE_HOME, else ~/.cache, or a folder in its stead."""
    wanted = _wanted_cache()
    return wanted if "XDG_CACHE_HOME" in os.environ or _may_write(wanted) else _stand_in()


def lend_home() -> str | None:
    """Set HOME or XDG_CACHE_HOME for a user without a home, or one that may not be written; return what to tell him.

    Containers run as users that the machine does not know; Ray, PyTorch and others end with a traceback then.
    """
    try:
        Path.home()
    except RuntimeError:
        variable, folder = "HOME", user_home()
    else:
        if _may_write(_wanted_cache()):
            return None
        variable, folder = "XDG_CACHE_HOME", _stand_in()
    os.environ[variable] = str(folder)
    return f"this user (uid {os.getuid()}) has no home folder to write to: caches go to {folder}"


def own_name() -> str:
    """Return what this user's folders are called where all users' are."""
    return f"zfdist-{os.getuid()}"


def own_folder(parent: Path) -> Path:
    """Return the folder of this user in one that all users share; makes it.

    Raises:
        PermissionError: if somebody else has taken its name.
    """
    folder = parent / own_name()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user", str(folder))
    return folder


def at_home(path: Path) -> Path:
    """Return a path with "~/.cache", if it starts so, as `cache_home`, and "~" alone as `user_home`."""
    if path.parts[:2] == ("~", ".cache"):
        return cache_home().joinpath(*path.parts[2:])
    return user_home().joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else Path(os.path.expanduser(path))


def _wanted_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or user_home() / ".cache")


def _may_write(folder: Path) -> bool:
    """Return whether a folder can be written, or made where it is not there yet."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists() or place == place.parent)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _stand_in() -> Path:
    """Return a folder for a user without a home, the same each time unless somebody else has taken its name."""
    try:
        return own_folder(Path(tempfile.gettempdir()))
    except PermissionError:
        return Path(tempfile.mkdtemp(prefix="zfdist-"))


def _quota(quota_us: str, period_us: str) -> float:
    """Return how many CPUs so many microseconds in every period are; "max" and -1 limit nothing."""
    quota, period = _number(quota_us), _number(period_us)
    return quota / period if quota > 0 and 0 < period < math.inf else math.inf


def _number(text: str, other: float = math.inf) -> float:
    """Return the number in a control file, or `other` if there is none."""
    return int(text) if re.fullmatch(r"\s*-?[0-9]+\s*", text) else other


def _read(path: Path) -> str:
    """Return the text of a control file, "" if this group or version has none."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from the innermost outwards.

    A container may see the path that its group has on the host, of which only the last folder, as the root, is there.
    """
    mounts = root / "sys/fs/cgroup"
    lines = _read(root / "proc/self/cgroup").splitlines()
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and controller not in controllers.split(","):
            continue
        inside = Path(group.lstrip("/"))
        for mount in _VERSION_1[controller] if controllers else _VERSION_2:
            yield from dict.fromkeys(mounts / mount / part for part in (inside, *inside.parents))
