"""What surrounds `train` in every process that trains a run, whoever started it: its folder, its claim, its log."""

import contextlib
import faulthandler
import os
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from zfdist.checkpoint import run_sync
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.claim import TakenError, held
from zfdist.lease import BusyError
from zfdist.run_options import HANG_TIMEOUT_S, RunOptions
from zfdist.run_protocol import ERRORS, LOG, STOP

START_S = 600.0
"""The first step may take so long, if no more is given: imports, the data's check and the restore come before it."""
LEASE_S = 30.0
"""A worker that was not answered for so long ends itself."""
HANGS = "hangs"
"""Folder of a run with the stacks of workers that stood still."""
POLL_S = 0.25
"""How often files are looked at."""


@contextlib.contextmanager
def opened(run: RunOptions, launch: int, rank: int) -> Iterator[WorkingCopy | None]:
    """Have a working copy of a run in an object store within the block; None for a run in a shared folder."""
    store, tries = run.store, run.config.checkpoint.max_failures
    if store is None:
        yield None
        return
    with run_sync.opened(
        store.uri, rank, owner=store.owner, launch=launch, cache=store.cache, tries=tries, wait_s=2 * LEASE_S
    ) as copy:
        yield copy


@contextlib.contextmanager
def logged(run_folder: Path, rank: int) -> Iterator[None]:
    """Send what rank 0 prints to the run's log, and every traceback to its error log, within the block."""
    with contextlib.ExitStack() as stack:
        if rank == 0:
            log = stack.enter_context((run_folder / LOG).open("a", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(log))
        try:
            yield
        except Exception:
            with contextlib.suppress(OSError), (run_folder / ERRORS).open("a") as errors:  # the disk may be what failed
                errors.write(f"{time.strftime('%F %T')} worker {rank} on {socket.gethostname()}\n")
                errors.write(traceback.format_exc() + "\n")
            raise


class StopFileReporter:
    """Whoever started a run, as a run in a trial's own process sees it: a file asks it to stop.

    Within the block, a run without progress ends its process, and leaves its stacks; Ray Tune begins the trial again.
    """

    def __init__(self, run_folder: Path, hang_timeout_s: float = HANG_TIMEOUT_S) -> None:
        self._run_folder = run_folder
        self._stop = run_folder / STOP
        self._next_look_s = 0.0
        self._timeout_s = hang_timeout_s
        self._next_renewal_s = 0.0
        self._file = stacks_file(run_folder, 0)

    def __enter__(self) -> "StopFileReporter":
        self._stacks = self._file.open("w")
        faulthandler.dump_traceback_later(max(self._timeout_s, START_S), exit=True, file=self._stacks)
        return self

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        self._file.unlink()
        remove_if_unused(self._run_folder)

    def report(self, metrics: dict[str, float], checkpoint_folder: Path | None) -> None:
        """Do nothing: metrics.jsonl and the checkpoints are followed where they are written."""

    def progress(self, step: int) -> None:
        """Set the timer again, which ends the process; a timer is a thread, so not at every step."""
        now = time.monotonic()
        if now >= self._next_renewal_s:
            self._next_renewal_s = now + self._timeout_s / 10
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._stacks)

    def should_stop(self) -> bool:
        """Return whether the stop file is there; looks four times a second at most, as the disk may be far away."""
        now = time.monotonic()
        if now < self._next_look_s:
            return False
        self._next_look_s = now + POLL_S
        return self._stop.exists()


@contextlib.contextmanager
def claim(run_folder: Path, *, wait_s: float) -> Iterator[None]:
    """Be the only process that writes to a run within the block; a killed holder frees it by dying.

    Raises:
        BusyError: if another process still holds it after `wait_s`.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(run_folder / ".lock", wait_s=wait_s))
        except TakenError as error:
            message = f"{run_folder} is being trained by another process ({error.who})"
            raise BusyError(message, error.who) from None
        yield


def stacks_file(run_folder: Path, rank: int) -> Path:
    """Return where this process writes its stacks if it stands still."""
    folder = run_folder / HANGS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-worker-{rank}-{os.getpid()}.txt"


def remove_if_unused(run_folder: Path) -> None:
    """Remove the folder of stacks of a run that has ended, if there are none in it."""
    with contextlib.suppress(OSError):
        (run_folder / HANGS).rmdir()
