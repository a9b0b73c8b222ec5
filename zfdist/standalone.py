"""A run whose workers Ray did not start: this process alone, or one of those that torchrun or srun started.

The run folder is the same, and so are its numbers, to the bit, at the same number of workers; a run may go on under
the other way. What machines do to a run is answered by Ray alone: nothing here launches again, shrinks or grows.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zfdist import container
from zfdist.checkpoint import room
from zfdist.checkpoint.run_folder import changes, is_finished
from zfdist.config import Config
from zfdist.errors import ZfdistError
from zfdist.refusals import refuse
from zfdist.run_protocol import STOP, Outcome, Weights
from zfdist.signals import stop_on_signals, was_interrupted
from zfdist.tail import follower
from zfdist.worker import HANG_TIMEOUT_S, POLL_S, RunLocation, StopFileReporter, claim, logged, opened

_SLURM_PORTS = (20_000, 10_000)  # from where and how many: steps of jobs that share a machine take others


class LauncherError(ZfdistError):
    """The environment does not say whole which of several workers this is, or there is no GPU though asked for."""


class Place(NamedTuple):
    """Which of the workers this process is, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: tuple[str, int] | None = None
    """Host and port at which rank 0 listens; None for a worker alone."""


def place(environ: Mapping[str, str]) -> Place:
    """Return what torchrun, srun, or nobody says of this process in its environment.

    Raises:
        LauncherError: if what is said is not whole.
    """
    try:
        if int(environ.get("WORLD_SIZE", "1")) > 1:  # torchrun, or a user
            size, meeting = int(environ["WORLD_SIZE"]), (environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))
            local = int(environ["LOCAL_RANK"]), int(environ.get("LOCAL_WORLD_SIZE", size))
            return Place(int(environ["RANK"]), size, *local, meeting)
        if "SLURM_STEP_ID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _of_slurm(environ)
    except KeyError as missing:
        message = f"{missing.args[0]} is not set, though this is one of several workers: use torchrun or srun"
        raise LauncherError(message) from None
    return Place()


def _of_slurm(environ: Mapping[str, str]) -> Place:
    local_sizes = [
        int(size)
        for size, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
    low, count = _SLURM_PORTS
    port = low + (31 * int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])) % count
    return Place(
        int(environ["SLURM_PROCID"]),
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_LOCALID"]),
        local_sizes[int(environ["SLURM_NODEID"])],
        (host, int(environ.get("MASTER_PORT", port))),
    )


def _first_host(hosts: str) -> str:
    """Return the first of a list of hosts as Slurm writes it: "node[007-009,12],x" -> "node007"."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", hosts)
    if found is None:
        raise LauncherError(f"SLURM_STEP_NODELIST = {hosts!r} names no host; set MASTER_ADDR")
    return found[1] + (found[2] or "")


def run(
    config: Config,
    run_folder: Path,
    *,
    use_gpu: bool | None = None,
    start_from: Weights | None = None,
    profile: bool = False,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    store: RunLocation | None = None,
    on_accepted: Callable[[], None] = lambda: None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Outcome, bool]:
    """Train as the worker that the environment says; SIGTERM or SIGINT make the run save and end.

    Returns how the run ended, and whether that was for SIGINT.

    Args:
        config: the whole run; every worker passes the same.
        run_folder: shared by all workers.
        use_gpu: None for one if there are any.
        start_from: see `zfdist.train`.
        profile: see `zfdist.train`.
        hang_timeout_s: without progress the process ends, and leaves its stacks in hangs/.
        store: of a run in an object store; `run_folder` is not used then.
        on_accepted: called once nothing of it was refused.
        on_report: called in rank 0 with each new record of metrics.jsonl; a thread of its own calls it.
        say: told what happens, in rank 0.

    Raises:
        BusyError: another process trains it. Else what `zfdist.train` and `zfdist.refusals` raise.
        LauncherError: if the environment tells of several workers and is not whole; or of no GPU, though asked for.
    """
    here = place(os.environ)
    is_first = here.rank == 0
    if store is None and is_finished(config, run_folder):
        if is_first:
            say(f"{run_folder} is finished ({config.train.steps} steps); raise --train.steps to go on")
        return Outcome("finished", config.train.steps), False
    device = _prepare_process(config, here, use_gpu)
    refuse(config, run_folder, device=device, workers=[here.size], start_from=start_from, store=store)

    on_accepted()

    from zfdist import world
    from zfdist.train import train

    with room.explained(run_folder), opened(store, 0, here.rank, config) as copy:
        folder = run_folder if copy is None else copy.folder
        with contextlib.ExitStack() as stack:
            if is_first:
                stack.enter_context(claim(folder, wait_s=10))
                for change in changes(config, folder):
                    say(f"changed since the last time: {change}")
                (folder / STOP).unlink(missing_ok=True)
                stack.enter_context(_followed(folder, say, on_report))
            stack.enter_context(logged(folder, here.rank))
            joined = world.connect()
            joined.barrier()  # the claim is held: a signal before it ends this process, and touches nothing
            stack.enter_context(stop_on_signals(folder, say if is_first else _nothing))
            reporter = stack.enter_context(StopFileReporter(folder, hang_timeout_s))
            outcome = train(config, folder, joined, reporter, start_from, copy=copy, profile=profile)
            return outcome, outcome.state == "stopped" and was_interrupted(folder)


def _prepare_process(config: Config, here: Place, use_gpu: bool | None) -> str:
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
        raise LauncherError("--gpu: torch sees no GPU in this machine; leave it out to train on the CPU")
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if here.meeting is not None:
        address, port = here.meeting
        os.environ |= {
            "RANK": str(here.rank),
            "WORLD_SIZE": str(here.size),
            "LOCAL_RANK": str(here.local_rank),
            "LOCAL_WORLD_SIZE": str(here.local_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        _use_interface_to(address, port)
    return "cuda" if has_gpu else "cpu"


def _use_interface_to(address: str, port: int) -> None:
    """Make gloo and NCCL use the interface that reaches rank 0; by themselves they may take loopback."""
    from zfdist.world import interface_of

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # sends nothing
        interface = interface_of(probe.getsockname()[0])
        if interface:
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(name, interface)


@contextlib.contextmanager
def _followed(
    run_folder: Path, say: Callable[[str], None], on_report: Callable[[dict[str, Any]], None] | None
) -> Iterator[None]:
    """Pass on what the run writes within the block, in a thread: its own prints go to its log."""
    ended, follow = threading.Event(), follower(run_folder, say, on_report)

    def repeat() -> None:
        while not ended.wait(POLL_S):
            follow()

    thread = threading.Thread(target=repeat, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follow()


def _nothing(line: str) -> None:
    """Say nothing: rank 0 does."""
