"""A run whose workers Ray did not start: this process alone, or one of those that torchrun or srun started.

The run folder is the same, and so are its numbers, to the bit, at the same number of workers; a run may go on under
the other way. What machines do to a run is answered by Ray alone: nothing here launches again, shrinks or grows.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zfdist import container, launcher, startup
from zfdist.checkpoint import room
from zfdist.checkpoint.run_folder import changes, is_finished
from zfdist.checkpoint.run_sync import repeated
from zfdist.config import Config
from zfdist.refusals import refuse
from zfdist.run_options import RunOptions
from zfdist.run_protocol import STOP, Outcome
from zfdist.signals import stop_on_signals, was_interrupted
from zfdist.tail import follower
from zfdist.worker import POLL_S, StopFileReporter, claim, logged, opened


def fit(
    run: RunOptions,
    *,
    on_accepted: Callable[[], None] = lambda: None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Outcome, bool]:
    """Train as the worker that the environment says; SIGTERM or SIGINT make the run save and end.

    Returns how the run ended, and whether that was for SIGINT.

    Args:
        run: its options; every worker passes the same. Without progress the process ends, and leaves its stacks.
        on_accepted: called once nothing of it was refused.
        on_report: called in rank 0 with each new record of metrics.jsonl; a thread of its own calls it.
        say: told what happens, in rank 0.

    Raises:
        BusyError: another process trains it. Else what `zfdist.train` and `zfdist.refusals` raise.
        LauncherError: if the environment tells of several workers and is not whole; or of no GPU, though asked for.
    """
    here = launcher.place(os.environ)
    is_first = here.rank == 0
    config = run.config
    if run.store is None and is_finished(config, run.folder):
        if is_first:
            say(f"{run.folder} is finished ({config.train.steps} steps); raise --train.steps to go on")
        return Outcome("finished", config.train.steps), False
    startup.begin_with_process("command")
    device = _prepare_process(config, here, run.machines.gpu)
    refuse(run, device=device, workers=[here.size])
    on_accepted()

    from zfdist import world
    from zfdist.train import train

    startup.ended("imports")
    with room.explained(run.folder), opened(run, 0, here.rank) as copy:
        folder = run.folder if copy is None else copy.folder
        with contextlib.ExitStack() as stack:
            if is_first:
                stack.enter_context(_held(config, folder, say, on_report))
            stack.enter_context(logged(folder, here.rank))
            joined = world.connect()
            joined.barrier()  # the claim is held: a signal before it ends this process, and touches nothing
            stack.enter_context(stop_on_signals(folder, say if is_first else _nothing))
            reporter = stack.enter_context(StopFileReporter(folder, run.machines.hang_timeout))
            outcome = train(config, folder, joined, reporter, run.start_from, copy=copy, profile=run.profile)
            return outcome, outcome.state == "stopped" and was_interrupted(folder)


def _prepare_process(config: Config, here: launcher.Place, use_gpu: bool | None) -> str:
    """Give this process its CPUs or GPU, and say where the others are, before torch is imported; return the device."""
    threads = config.engine.threads_per_worker or max(1, container.cpus() // here.local_size)
    if here.size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it to 1 where nobody has set it
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if use_gpu is False:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch

    has_gpu = torch.cuda.is_available()
    if use_gpu and not has_gpu:
        raise launcher.LauncherError("--gpu: torch sees no GPU in this machine; leave it out to train on the CPU")
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if here.meeting is not None:
        address, port = launcher.address_of(here.meeting[0]), here.meeting[1]
        os.environ |= {
            "RANK": str(here.rank),
            "WORLD_SIZE": str(here.size),
            "LOCAL_RANK": str(here.local_rank),
            "LOCAL_WORLD_SIZE": str(here.local_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        launcher.use_interface_to(address, port)
    return "cuda" if has_gpu else "cpu"


@contextlib.contextmanager
def _held(
    config: Config, folder: Path, say: Callable[[str], None], on_report: Callable[[dict[str, Any]], None] | None
) -> Iterator[None]:
    """Hold the run within the block, and pass on what it writes, in a thread: its own prints go to its log."""
    with claim(folder, wait_s=10):
        for change in changes(config, folder):
            say(f"changed since the last time: {change}")
        (folder / STOP).unlink(missing_ok=True)
        follow = follower(folder, say, on_report)
        try:
            with repeated(follow, POLL_S):
                yield
        finally:
            follow()


def _nothing(line: str) -> None:
    """Say nothing: rank 0 does."""
