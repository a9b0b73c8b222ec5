"""In each worker of a launch: says that it is alive, hears what is asked, and ends a worker that is cut off or stuck.

Three things can go wrong in a process that Ray still counts as alive, and each is met where it can be:

- its training thread stands still (sleeps, or waits in a collective): this watch's thread sees it, writes all stacks
  to hangs/ in the run folder and says where it is; the command ends the launch and names who held up the others;
- the whole interpreter stands still (a call in C that keeps the lock), or the network to the command is gone: this
  thread cannot run or gets no answer, so nobody renews the lease, and a timer in C writes the stacks and ends it;
- the process is stopped by a signal: nothing in it runs, so the command misses its heartbeats and kills it.
"""

import contextlib
import faulthandler
import os
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.exceptions

from cluster import ray_internals
from cluster.run.heartbeat import Heartbeat, Member, join

HANG_TIMEOUT_S = 600.0
START_S = 600.0
"""The first step may take so long, if no more is given: imports, the data's check and the restore come before it."""
LEASE_S = 30.0
"""A worker that was not answered for so long ends itself."""
HANGS = "hangs"
"""Folder of a run with the stacks of workers that stood still."""
_HEARTBEAT_S = 0.5
_LIBRARIES = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
_COLLECTIVES = (os.path.join("torch", "distributed"), os.path.join("deepspeed", "comm"))


def lease_s(hang_timeout_s: float) -> float:
    """Return how long a worker may be without an answer."""
    return min(LEASE_S, hang_timeout_s)


def remove_if_unused(run_folder: Path) -> None:
    """Remove the folder of stacks of a run that has ended, if there are none in it."""
    with contextlib.suppress(OSError):
        (run_folder / HANGS).rmdir()


def stacks_file(run_folder: Path, rank: int) -> Path:
    """Return where this process writes its stacks if it stands still."""
    folder = run_folder / HANGS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-worker-{rank}-{os.getpid()}.txt"


class Watchdog:
    """The watch over the thread that makes it; within the block. A Reporter to the run that it watches."""

    def __init__(self, coordinator: Any, rank: int, run_folder: Path, hang_timeout_s: float) -> None:
        self._coordinator = coordinator
        self._rank = rank
        self._timeout_s = hang_timeout_s
        self._file = stacks_file(run_folder, rank)
        self._thread_id = threading.get_ident()
        self._step, self._moved_s = 0, time.monotonic()
        self._asked_to_end = self._started = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._stacks = self._file.open("w")
        context = ray.get_runtime_context()
        group = ray.util.get_current_placement_group()
        ip = ray.util.get_node_ip_address()
        controller = ray_internals.train_controller()
        member = Member(self._rank, ip, context.get_node_id(), os.getpid(), context.current_actor, group, controller)
        join(self._coordinator, member)
        self._renew()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        if not self._file.stat().st_size:
            self._file.unlink()

    def report(self, metrics: dict[str, float], checkpoint_folder: Path | None) -> None:
        """Do nothing: metrics.jsonl and the checkpoints are followed where they are written.

        Ray is told nothing. Its `report` holds all workers until the controller has taken the report before, twice a
        second at best, and a checkpoint that it knew of would have to be mended with its snapshot.
        """

    def progress(self, step: int) -> None:
        """Note that a piece of work was finished."""
        self._step, self._moved_s, self._started = step, time.monotonic(), True

    def should_stop(self) -> bool:
        """Return whether the command asked this worker to save and end."""
        return self._asked_to_end

    def _renew(self) -> None:
        faulthandler.dump_traceback_later(lease_s(self._timeout_s), exit=True, file=self._stacks)

    def _watch(self) -> None:
        dumped = False
        while not self._over.wait(_HEARTBEAT_S):
            still_s = time.monotonic() - self._moved_s
            at, waits = "", False
            if still_s > (self._timeout_s if self._started else max(self._timeout_s, START_S)):
                at, waits = _where(sys._current_frames().get(self._thread_id))
                if not dumped:
                    faulthandler.dump_traceback(self._stacks, all_threads=True)
                    dumped = True
            try:
                answer = self._coordinator.heartbeat.remote(self._rank, Heartbeat(self._step, still_s, at, waits))
                self._asked_to_end |= ray.get(answer, timeout=lease_s(self._timeout_s))
            except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
                continue  # the lease is not renewed
            except ray.exceptions.RayActorError:
                # The command has ended this launch, or is gone itself; what comes next must find nobody here.
                os._exit(1)
            self._renew()


def _where(frame: FrameType | None) -> tuple[str, bool]:
    """Return the innermost line outside of libraries that a thread is at, and whether it waits for other workers."""
    at, waits = "", False
    while frame is not None:
        name = frame.f_code.co_filename
        waits = waits or any(part in name for part in _COLLECTIVES)
        if not at and not name.startswith(_LIBRARIES):
            at = f"{os.path.basename(name)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return at or "a line of a library", waits
