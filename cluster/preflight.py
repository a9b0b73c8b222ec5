"""Whether Ray can start on this machine, before it tries: where its files may be, and whether the limits leave it room.

Ray keeps sockets, logs and a fallback of its object store in FOLDER/ray/session_.../, where FOLDER is RAY_TMPDIR,
else TMPDIR, else /tmp. The path of a socket has at most 107 bytes.
"""

import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from zfdist import container

_MINE = container.own_name()
SHARED_MEMORY = Path("/dev/shm")
LONGEST_FOLDER_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_COMPLAINT = re.compile(r"\b[EFC] \d|Check failed|[Ee]rror|ERROR|terminate called|[Ff]ailed|Cannot|Unable")
_FILES_MIB = 64  # logs and sockets of a run
_THREADS = 300  # of Ray's own processes and this one; 430 were counted with two workers on two CPUs
_THREADS_PER_CPU = 60
_OPEN_FILES = 512


class Place(NamedTuple):
    """A folder for Ray's files."""

    folder: str
    remark: str | None = None
    """Why it is not the one that Ray would take by itself."""


class Limits(NamedTuple):
    """What a new process of this user may still have; None for any number."""

    processes: int | None
    """Counts threads."""
    open_files: int | None
    """Of one process, once it raises its limit as far as it may."""


def place(environment: Mapping[str, str], trouble: Callable[[str], str | None]) -> Place:
    """Choose the folder for Ray's files: the one that Ray would take, else a short one of this user.

    Args:
        environment: RAY_TMPDIR, which is obeyed; TMPDIR; XDG_RUNTIME_DIR.
        trouble: tells why a folder will not do, None if it will.

    Raises:
        LookupError: if there is none; the message is a sentence.
    """
    remedy = f"set RAY_TMPDIR to a folder on a disk of this machine, of at most {LONGEST_FOLDER_BYTES} bytes"
    if given := environment.get("RAY_TMPDIR"):
        if why := trouble(given):
            raise LookupError(f"RAY_TMPDIR={given} {why}; {remedy}, or unset it")
        return Place(given)
    found: list[str] = []
    for name, folder in _candidates(environment):
        if why := trouble(folder):
            found.append(f"{name} {why}")
        elif found:
            return Place(folder, f"{found[0]}: Ray's files go to {folder} (RAY_TMPDIR=... chooses another)")
        else:
            return Place(folder)
    raise LookupError(f"no folder will do for Ray's files: {', '.join(found)}; {remedy}")


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    first = environment.get("TMPDIR")
    yield (f"TMPDIR={first}", first) if first else ("/tmp", "/tmp")
    runtime = environment.get("XDG_RUNTIME_DIR")
    for folder in (f"/tmp/{_MINE}", runtime, f"/var/tmp/{_MINE}", f"{SHARED_MEMORY}/{_MINE}"):
        if folder:
            yield folder, folder


def trouble_with(folder: str, room_mib: int) -> str | None:
    """Return why Ray's files cannot be in a folder, None if they can; makes the folder if it is not there."""
    if not os.path.isabs(folder):
        return "is no absolute path"
    if (size := len(os.fsencode(folder.rstrip("/")))) > LONGEST_FOLDER_BYTES:
        return f"is too long for Ray's sockets ({size} bytes)"
    inside = os.path.join(folder, "ray")
    try:
        if os.path.basename(folder) == _MINE:
            container.own_folder(Path(folder).parent)
        os.makedirs(inside, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=inside, prefix="try-") as corner:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(os.path.join(corner, "s"))
            with open(os.path.join(corner, "f"), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, room_mib * 2**20)
    except OSError as error:
        return f"cannot hold {room_mib} MiB of files and sockets ({error.strerror})"
    return None


def room_mib(object_store_mib: int, *, in_shared_memory: bool) -> int:
    """Return how much room Ray's files need in their folder."""
    return _FILES_MIB + (0 if in_shared_memory else object_store_mib)


def has_shared_memory(wanted_mib: int) -> bool:
    """Return whether /dev/shm has room for an object store."""
    try:
        return os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= wanted_mib * 2**20
    except OSError:
        return False


def limits() -> Limits:
    """Return the limits of this process, its user and its control groups."""
    by_groups = container.processes_left()
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    of_user = None if most == resource.RLIM_INFINITY or os.getuid() == 0 else max(0, most - _threads_of(os.getuid()))
    left = [number for number in (by_groups, of_user) if number is not None]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Limits(min(left, default=None), None if files == resource.RLIM_INFINITY else files)


def too_tight(limits: Limits, cpus: int) -> str | None:
    """Return which limit leaves Ray and a worker on every CPU no room, and the remedy; None if all do."""
    threads = _THREADS + _THREADS_PER_CPU * cpus
    if limits.processes is not None and limits.processes < threads:
        return (
            f"{limits.processes} more processes and threads are allowed here, and Ray needs {threads}: raise "
            "`ulimit -u`, the container's --pids-limit or the job's limit on tasks, or end other programs"
        )
    if limits.open_files is not None and limits.open_files < _OPEN_FILES:
        return (
            f"a process may open {limits.open_files} files here, and Ray needs {_OPEN_FILES}: raise the hard limit "
            "(`ulimit -Hn`), for a container --ulimit nofile=65536"
        )
    return None


def last_words(folder: Path, process_id: int) -> str:
    """Return " (FILE: LINE)" with the last complaint in the logs of the Ray that a process tried to start there."""
    for logs in sorted(folder.glob(f"session_*_{process_id}/logs"), reverse=True)[:1]:
        for pattern in ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out", "dashboard*.err", "*.log"):
            for log in sorted(logs.glob(pattern)):
                complaints = [line for line in _lines(log) if _COMPLAINT.search(line)]
                if complaints:
                    return f" ({log}: {' '.join(complaints[-1].split())[:300]})"
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _threads_of(uid: int) -> int:
    """Return how many threads the processes of a user have in all."""
    count = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and process.stat().st_uid == uid:
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:
            continue  # it has just ended
    return count
