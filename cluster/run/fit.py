"""One training run on N workers: launches of zfdist.train on the machines that there are, until it is done.

The run folder, on a filesystem that all workers share, is the only truth: `zfdist.train` writes checkpoints there and
goes on from them, with any number of workers. So whatever ends a launch is answered in one way: look what machines
there are, and launch again. Ray holds nothing that a run needs; its own files live in a scratch folder of one launch.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cluster import nodes
from cluster.nodes import WorkerResources
from cluster.run.attempt import SCRATCH, FitError, Job, launch
from cluster.run.policy import End, Range, counts, team_size, what_next
from cluster.run.refusals import refuse
from cluster.run.resize import ResizeReason
from cluster.run.signals import stop_on_signals
from cluster.run.tail import LOG, Lines, Records
from cluster.run.watchdog import HANG_TIMEOUT_S
from cluster.run.worker import POLL_S, STOP, RunLocation, claim
from cluster.session import ClusterError
from zfdist import lease, run_protocol
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.run_folder import config_of
from zfdist.checkpoint.run_sync import FOLLOW_S
from zfdist.config import Config
from zfdist.object_store import ObjectFolder
from zfdist.run_protocol import METRICS, Outcome, Weights

WAIT_FOR_NODES_S = 600.0
GROW_EVERY_S = 120.0
_FREED_S = 5.0  # what a launch held is free again by then

Say = Callable[[str], None]


class RunLog(NamedTuple):
    """How whoever started a run hears of it."""

    note: Say
    """Tells what becomes of the workers: through the run's log, which in a store is written by rank 0 alone."""
    follow: Callable[[], None]
    """Passes on what the run has written since the last call."""


def fit(
    config: Config,
    run_folder: Path,
    *,
    workers: int | Range = 1,
    cpus_per_worker: int | None = None,
    use_gpu: bool | None = None,
    max_failures: int = 3,
    start_from: Weights | None = None,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    wait_for_nodes_s: float | None = None,
    grow_every_s: float = GROW_EVERY_S,
    profile: bool = False,
    store: RunLocation | None = None,
    on_accepted: Callable[[], None] = lambda: None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    say: Say = print,
) -> Outcome:
    """Train until the run is finished or asked to stop, on as many workers as there may be; needs a connected Ray.

    In the main thread, SIGTERM or SIGINT make the run save and end; a second one aborts.

    Args:
        config: the whole run.
        run_folder: shared by all workers; holds the run, and is gone on with if it was begun.
        workers: processes that share each global batch. A range shrinks with the machines and grows with them.
        cpus_per_worker: None for an even part of what the cluster has at first.
        use_gpu: a GPU for each worker; None if the cluster has any.
        max_failures: deaths of workers (no resize, no machine taken away with notice) that are answered by going on.
        start_from: whose weights a new run starts from.
        hang_timeout_s: without progress a worker is taken for dead; more than the start or a checkpoint takes.
        wait_for_nodes_s: to wait for missing machines. None: not at the start, and WAIT_FOR_NODES_S after a loss.
        grow_every_s: a launch is left alone for so long before it is ended for the sake of more workers.
        profile: every worker also writes where its time goes, see `zfdist.profile`.
        store: of a run in an object store; `run_folder` then follows it (see `zfdist.checkpoint.run_sync.followed`).
        on_accepted: called once nothing of it was refused, before the first launch.
        on_report: called here with each new record of metrics.jsonl.
        say: told what happens.

    Raises:
        ClusterError: if the workers do not fit, or too few machines came back. BusyError: another process trains it.
        ZfdistError: what the run itself refuses (config, data, checkpoint); nothing is changed then.
        FitError: if it failed in another way.
    """
    workers = Range(workers, workers) if isinstance(workers, int) else workers
    _refuse_range(workers, config)
    if _is_finished(config, run_folder):
        say(f"{run_folder} is finished ({config.train.steps} steps); raise --train.steps to go on")
        return Outcome("finished", config.train.steps)
    resources = _resources_at_first(workers, cpus_per_worker, use_gpu, wait_for_nodes_s or 0, say)
    refuse(config, run_folder, workers, resources, start_from=start_from, store=store)
    _clear(config, run_folder, store, say)
    on_accepted()
    job = Job(config, run_folder, start_from, resources, hang_timeout_s, profile, store)
    patience_s = WAIT_FOR_NODES_S if wait_for_nodes_s is None else wait_for_nodes_s
    try:
        with stop_on_signals(run_folder, say):
            return _launches(job, workers, max_failures, patience_s, grow_every_s, _run_log(job, on_report, say))
    finally:
        shutil.rmtree(run_folder / SCRATCH, ignore_errors=True)


def _launches(
    job: Job,
    workers: Range,
    max_failures: int,
    patience_s: float,
    grow_every_s: float,
    run_log: RunLog,
) -> Outcome:
    """Launch again and again, until the run is over."""
    stop = job.run_folder / STOP
    deaths = false_starts = 0
    size = _team(job, workers, patience_s, run_log)
    while size:
        run_log.note(f"starting {_count(size)} ({_describe(job.resources)} each) ...")
        end = launch(
            job, size, follow=run_log.follow, resize_reason=ResizeReason(job.resources, size, workers, grow_every_s)
        )
        deaths += counts(end)
        false_starts = false_starts + 1 if end.kind == "unstarted" else 0
        move = what_next(
            end, deaths=deaths, max_failures=max_failures, false_starts=false_starts, stop_asked=stop.exists()
        )
        if move == "over":
            if job.store is not None:
                time.sleep(2 * FOLLOW_S)  # what it wrote last is on its way
            run_log.follow()
            return Outcome("finished" if end.kind == "finished" else "stopped", _step(job, end))
        if move == "give up":
            raise end.error or FitError(f"{end.why}, and that was death {deaths}; see {job.run_folder / LOG}")
        was = f" at step {end.step}" if end.step else ""
        run_log.note(f"{end.why}{was}; starting again from step {_step(job, end)} ...")
        size = _team(job, workers, patience_s, run_log)
    return Outcome("stopped", _newest(job))


def _team(job: Job, workers: Range, patience_s: float, run_log: RunLog) -> int:
    """Return how many workers to launch now; waits for machines that are missing. 0 if asked to stop meanwhile.

    Raises:
        ClusterError: if too few came in time.
    """
    started, told = time.monotonic(), False
    while True:
        waited_s = time.monotonic() - started
        there = nodes.reachable(nodes.staying(nodes.alive()))
        room, free_room = nodes.room_for(there, job.resources), nodes.room_for(nodes.free(there), job.resources)
        size = team_size(workers, room=room, free_room=free_room)
        if size is not None and (size == min(workers.high, room) or waited_s > _FREED_S):
            return size
        if size is None:
            missing = f"{_count(workers.low)} of {_describe(job.resources)} each needed, room for {room} on " + (
                nodes.describe(there)
            )
            if waited_s > patience_s:
                raise ClusterError(f"{missing}; the same command goes on once there are more machines")
            if not told:
                run_log.note(f"waiting up to {patience_s:.0f} s for machines ({missing}) ...")
                told = True
        if (job.run_folder / STOP).exists():
            return 0
        run_log.follow()
        time.sleep(POLL_S)


def _run_log(job: Job, on_report: Callable[[dict[str, Any]], None] | None, say: Say) -> RunLog:
    records = Records(job.run_folder / METRICS, from_start=False)
    lines = Lines(job.run_folder / LOG, from_start=False)

    def note(line: str) -> None:
        with (job.run_folder / LOG).open("a") as log:
            log.write(f"{line}\n")

    def follow() -> None:
        for line in lines.new():
            say(line.decode(errors="replace").rstrip("\n"))
        for record in records.new():
            if on_report:
                on_report(record)

    return RunLog(note if job.store is None else say, follow)


def _step(job: Job, end: End) -> int:
    """Return the step that the run has come to for good."""
    if end.kind in ("finished", "stopped"):
        return end.step
    return _newest(job)


def _clear(config: Config, run_folder: Path, store: RunLocation | None, say: Say) -> None:
    """Remove what earlier commands left, unless one of them still trains; raises BusyError.

    The claims are released at once: the first worker holds them while it trains.
    """
    for change in _changes(config, run_folder):
        say(f"changed since the last time: {change}")
    if store is not None:
        with lease.held(ObjectFolder(store.uri), store.owner, 0, wait_s=1.5 * lease.STALE_S):
            pass
    with claim(run_folder, wait_s=10):
        (run_folder / STOP).unlink(missing_ok=True)
        shutil.rmtree(run_folder / SCRATCH, ignore_errors=True)


def _newest(job: Job) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    if job.store is None:
        return max(checkpoint.steps(job.run_folder), default=0)
    # It imports torch: not in a command that has nothing in a store.
    from zfdist.checkpoint import remote_checkpointer

    return max(remote_checkpointer.steps(ObjectFolder(job.store.uri)), default=0)


def _refuse_range(workers: Range, config: Config) -> None:
    if workers.low < workers.high and config.engine.zero_stage == 3:
        raise ClusterError(
            f"--workers {workers} with engine.zero_stage = 3: its states cannot be cut for another number of workers; "
            f"pass one number, e.g. --workers {workers.high}, or --engine.zero-stage 2"
        )


def _resources_at_first(
    workers: Range, cpus_per_worker: int | None, use_gpu: bool | None, patience_s: float, say: Say
) -> WorkerResources:
    """Return what each worker holds in all launches: as for the most workers that fit now."""
    deadline_s, told = time.monotonic() + patience_s, False
    while True:
        there = nodes.staying(nodes.alive())
        for count in range(workers.high, workers.low - 1, -1):
            try:
                return nodes.resources_per_worker(
                    there, workers=count, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu
                )
            except ClusterError as error:
                refusal = error
        if time.monotonic() > deadline_s:
            raise refusal
        if not told:
            say(f"waiting up to {patience_s:.0f} s for machines (there are {nodes.describe(there)}) ...")
            told = True
        time.sleep(1)


def _is_finished(config: Config, run_folder: Path) -> bool:
    """Return whether exactly this run has ended."""
    if _changes(config, run_folder):
        return False
    ended = run_protocol.result(run_folder)
    return ended is not None and ended.get("step") == config.train.steps


def _changes(config: Config, run_folder: Path) -> list[str]:
    """Return what differs from the config that the run had before; whether it may is for `train` to say."""
    known = config_of(run_folder)
    if known is None:  # a new run, or one that another version began
        return []
    before = known.flat()
    return [f"{name} {before[name]} -> {value}" for name, value in config.flat().items() if before[name] != value]


def _count(workers: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)}"


def _describe(resources: WorkerResources) -> str:
    return f"{resources.cpus} CPU{'s' * (resources.cpus != 1)}" + (
        f", {resources.gpus:g} GPU" if resources.gpus else ""
    )
