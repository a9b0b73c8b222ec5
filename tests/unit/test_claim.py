"""One writer at a time: by locks of the kernel, and on file systems that have none."""

import ctypes.util
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfdist import claim, lease

NO_LOCKS = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
HOLD = """
import os, sys, time
clock, clock_ns, off_s = time.time, time.time_ns, int(os.environ.get("CLOCK_OFF_S", "0"))
time.time, time.time_ns = lambda: clock() + off_s, lambda: clock_ns() + 10**9 * off_s
from zfdist import claim
from zfdist import lease
lease.STALE_S, lease.RENEW_S = 2.0, 0.3
try:
    with claim.held(__import__("pathlib").Path(sys.argv[1]), wait_s=float(sys.argv[2])):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except claim.TakenError as error:
    print("taken by", error.who, flush=True)
"""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose flock fails, to be loaded before that of the system."""
    compiler = shutil.which("cc")
    if compiler is None or ctypes.util.find_library("c") is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("no-locks")
    (folder / "flock.c").write_text(NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    return folder / "flock.so"


class Holder:
    """A process that asks for a claim and keeps it for a while; its first line says whether it got it."""

    def __init__(self, path: Path, *, wait_s: float, keep_s: float, **environment: str) -> None:
        words = [sys.executable, "-c", HOLD, str(path), str(wait_s), str(keep_s)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | environment)

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["locks", "ENOSYS"])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if request.param == "locks":
        yield {}
        return
    library = request.getfixturevalue("no_locks")
    yield {"LD_PRELOAD": str(library), "FLOCK_ERRNO": str(getattr(errno, request.param))}


def test_nobody_holds_it_then_one_does_and_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    first = Holder(tmp_path / "lock", wait_s=0, keep_s=60, **environment)
    assert first.said() == "held"
    second = Holder(tmp_path / "lock", wait_s=0, keep_s=0, **environment)
    assert second.said() == f"taken by process {first.process.pid} on {os.uname().nodename}"
    second.process.wait()
    first.kill()  # what it leaves is nobody's
    third = Holder(tmp_path / "lock", wait_s=0, keep_s=0, **environment)
    assert third.said() == "held"
    assert third.process.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_whatever_a_file_system_without_locks_answers_nobody_is_taken_for_a_holder(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks_locks(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", lacks_locks)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)
    with claim.held(tmp_path / "lock", wait_s=0):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lock.lease"]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_who_stood_still_until_another_took_over_ends(no_locks: Path, tmp_path: Path) -> None:
    environment = {"LD_PRELOAD": str(no_locks), "FLOCK_ERRNO": str(errno.ENOSYS)}
    first = Holder(tmp_path / "lock", wait_s=0, keep_s=60, **environment)
    assert first.said() == "held"
    first.process.send_signal(signal.SIGSTOP)
    second = Holder(tmp_path / "lock", wait_s=30, keep_s=60, **environment)
    assert second.said() == "held"
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(timeout=30) == 1
    second.kill()


def test_a_claim_that_is_given_free_can_be_had_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        began = time.monotonic()
        with claim.held(tmp_path / "lock", wait_s=0):
            pass
        assert time.monotonic() - began < lease.STALE_S


def test_a_refused_claim_changes_nothing(tmp_path: Path) -> None:
    with claim.held(tmp_path / "lock", wait_s=0):
        before = (tmp_path / "lock").read_text()
        with (
            pytest.raises(claim.TakenError, match=f"process {os.getpid()} on"),
            claim.held(tmp_path / "lock", wait_s=0),
        ):
            pass
        assert (tmp_path / "lock").read_text() == before


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), claim.held(tmp_path / "none" / "lock"):
        pass


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"[]", b'{"owner": "x"'])
def test_a_torn_claim_without_locks_is_taken_over(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(fcntl, "flock", lacks_locks)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "_READS", 1)
    monkeypatch.setattr(lease, "STALE_S", 0.3)
    (tmp_path / "lock.lease").write_bytes(content)
    with claim.held(tmp_path / "lock", wait_s=5):
        assert str(os.getpid()).encode() in (tmp_path / "lock.lease").read_bytes()


def test_an_older_launch_that_renews_in_the_same_moment_gives_way_and_not_the_newer(tmp_path: Path) -> None:
    older, newer = (lease.Lease(lease.Folder(tmp_path), "one", launch) for launch in (1, 2))
    older.acquire(wait_s=0.1)
    for _ in range(2):  # the older one looked before the newer one wrote, and writes after it
        newer._write()
        older._write()
        newer.check(now=True)
    newer.acquire(wait_s=0)
    with pytest.raises(lease.BusyError, match="was taken over by another process"):
        older.check(now=True)
    with pytest.raises(lease.BusyError, match="is being trained by another process"):
        lease.Lease(lease.Folder(tmp_path), "one", 1).acquire(wait_s=0)


MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:41 / /mnt/ssh rw,nosuid,nodev,relatime - fuse.sshfs me@there:/data rw,user_id=0,group_id=0
31 22 0:42 / /mnt/nfs rw,relatime - nfs4 server:/x rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
32 22 0:43 / /mnt/old rw,relatime - nfs server:/x rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
33 22 0:44 / /mnt/lustre rw,relatime - lustre 10.0.0.1@tcp:/fs rw,localflock
34 22 0:45 / /mnt/with\\040space rw,relatime - fuse /src rw
35 30 254:2 / /mnt/ssh/local rw,relatime - ext4 /dev/vdb rw
36 22 254:3 / /mnt/twice rw,relatime - ext4 /dev/vdc rw
37 22 0:46 / /mnt/twice rw,relatime - fuse.rclone bucket: rw
38 22 0:47 / /mnt/rootless rw,relatime - fuse.fuse-overlayfs fuse-overlayfs rw
"""


@pytest.mark.parametrize(
    ("place", "are_shared"),
    [
        ("/data/runs", True), ("/mnt/ssh/runs", False), ("/mnt/ssh/local/runs", True), ("/mnt/nfs/runs", True),
        ("/mnt/old/runs", False), ("/mnt/lustre/runs", False), ("/mnt/with space/runs", False),
        ("/mnt/twice/runs", False), ("/mnt/sshd", True), ("/mnt/rootless/x", True),
    ],
)  # fmt: skip
def test_which_locks_other_machines_see(place: str, are_shared: bool) -> None:
    assert claim.locks_are_shared(MOUNTS, Path(place)) == are_shared


@pytest.mark.drill
@pytest.mark.parametrize("off_s", [7200, -7200])
def test_a_clock_that_is_hours_off_neither_loses_nor_keeps_a_claim(off_s: int, no_locks: Path, tmp_path: Path) -> None:
    right = {"LD_PRELOAD": str(no_locks), "FLOCK_ERRNO": str(errno.ENOSYS)}
    wrong = right | {"CLOCK_OFF_S": str(off_s)}
    for ours, theirs in ((right, wrong), (wrong, right)):
        path = tmp_path / f"lock-{len(list(tmp_path.iterdir()))}"
        first = Holder(path, wait_s=0, keep_s=60, **ours)
        assert first.said() == "held"
        assert Holder(path, wait_s=0, keep_s=0, **theirs).said().startswith("taken by"), "it is renewed"
        first.kill()
        assert Holder(path, wait_s=30, keep_s=0, **theirs).said() == "held", "it is not any more"


@pytest.mark.drill
def test_two_machines_that_mount_one_folder_by_fuse_exclude_each_other(tmp_path: Path) -> None:
    """Two mounts stand for the machines: the kernel gives both of them the lock of the same file."""
    if shutil.which("bindfs") is None or os.geteuid() != 0:
        pytest.skip("needs root, and bindfs: apt-get install bindfs")
    for name in ("folder", "one", "two"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        if subprocess.run(["bindfs", tmp_path / "folder", tmp_path / name], capture_output=True).returncode:
            pytest.skip("this container may not mount")
    try:
        with (tmp_path / "one/x").open("a") as ours, (tmp_path / "two/x").open("a") as theirs:
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = Holder(tmp_path / "one/lock", wait_s=0, keep_s=60)
        assert first.said() == "held"
        second = Holder(tmp_path / "two/lock", wait_s=0, keep_s=0)
        assert second.said().startswith(f"taken by process {first.process.pid}")
        first.process.kill()
        assert Holder(tmp_path / "two/lock", wait_s=60, keep_s=0).said() == "held", "what a killed one left"
    finally:
        for name in ("one", "two"):
            subprocess.run(["umount", "-l", tmp_path / name], check=True)
