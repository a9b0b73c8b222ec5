"""One training run on N workers: launches of zfdist.train on the machines that there are, until it is done.

The run folder, on a filesystem that all workers share, is the only truth: `zfdist.train` writes checkpoints there and
goes on from them, with any number of workers. So whatever ends a launch is answered in one way: look what machines
there are, and launch again. Ray holds nothing that a run needs; its own files live in a scratch folder of one launch.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import nodes
from cluster.demand import Demand, Say, Supply
from cluster.nodes import Coming, Node, WorkerResources
from cluster.run.attempt import SCRATCH, FitError, Job, launch
from cluster.run.policy import End, Range, counts, what_next
from cluster.run.resize import ResizeReason
from cluster.run.team import RunLog, Team, count, describe
from cluster.session import ClusterError
from zfdist import lease
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import room
from zfdist.checkpoint.run_folder import changes, is_finished
from zfdist.checkpoint.run_sync import FOLLOW_S
from zfdist.config import Config
from zfdist.object_store import ObjectFolder
from zfdist.refusals import refuse
from zfdist.run_protocol import LOG, STOP, Outcome, Weights
from zfdist.signals import stop_on_signals
from zfdist.tail import follower
from zfdist.worker import HANG_TIMEOUT_S, RunLocation, claim

GROW_EVERY_S = 120.0


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
    """Train until the run is finished or stopped (once saved, by SIGTERM or SIGINT too); needs a connected Ray.

    Args:
        config: the whole run.
        run_folder: shared by all workers; holds the run, and is gone on with if it was begun.
        workers: processes that share each global batch. A range shrinks with the machines and grows with them.
        cpus_per_worker: None for an even part of what the cluster has at first, or may get.
        use_gpu: a GPU for each worker; None if the cluster has any, or may get it.
        max_failures: deaths of workers (no resize, no machine taken away with notice) that are answered by going on.
        start_from: whose weights a new run starts from.
        hang_timeout_s: without progress a worker is taken for dead; more than the start or a checkpoint takes.
        wait_for_nodes_s: to wait for missing machines; None for `demand.PATIENCE_S` where any may come, see `Supply`.
        grow_every_s: a launch is left alone for so long before it is ended for the sake of more workers.
        profile: every worker also writes where its time goes, see `zfdist.profile`.
        store: of a run in an object store; `run_folder` then follows it (see `zfdist.checkpoint.run_sync.followed`).
        on_accepted: called once nothing of it was refused, before the first launch.
        on_report: called here with each new record of metrics.jsonl.
        say: told what happens.

    Raises:
        ClusterError: if the workers do not fit, or too few machines came back. BusyError: another process trains it.
        ZfdistError: what the run itself refuses (config, data, checkpoint). NoRoomError: if a disk is full.
        FitError: if it failed in another way.
    """
    workers = _range(workers, config)
    if is_finished(config, run_folder):
        say(f"{run_folder} is finished ({config.train.steps} steps); raise --train.steps to go on")
        return Outcome("finished", config.train.steps)
    supply = Supply(wait_for_nodes_s, say)
    resources = supply.plan(lambda there, coming: _resources(workers, cpus_per_worker, use_gpu, there, coming))
    sizes, device = range(workers.low, workers.high + 1), resources.device
    refuse(config, run_folder, device=device, workers=sizes, start_from=start_from, store=store)
    _clear(config, run_folder, store, say)
    on_accepted()
    job = Job(config, run_folder, start_from, resources, hang_timeout_s, profile, store)
    run_log = _run_log(job, on_report, say)
    try:
        with room.explained(run_folder), stop_on_signals(run_folder, say), Demand(resources) as demand:
            team = Team(workers, resources, demand, supply, run_log, run_folder / STOP)
            return _launches(job, team, max_failures, grow_every_s)
    finally:
        shutil.rmtree(run_folder / SCRATCH, ignore_errors=True)


def _launches(job: Job, team: Team, max_failures: int, grow_every_s: float) -> Outcome:
    """Launch again and again, until the run is over."""
    stop, run_log = team.stop, team.run_log
    deaths = false_starts = 0
    size = team.assemble(gathers=True)
    while size:
        run_log.note(f"starting {count(size)} ({describe(job.resources)} each) ...")
        reason = ResizeReason(team.demand, size, team.workers, grow_every_s)
        end = launch(job, size, team.demand.take(), follow=run_log.follow, resize_reason=reason)
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
        size = team.assemble()
    return Outcome("stopped", _newest(job))


def _run_log(job: Job, on_report: Callable[[dict[str, Any]], None] | None, say: Say) -> RunLog:
    def note(line: str) -> None:
        with (job.run_folder / LOG).open("a") as log:
            log.write(f"{line}\n")

    return RunLog(note if job.store is None else say, follower(job.run_folder, say, on_report))


def _step(job: Job, end: End) -> int:
    """Return the step that the run has come to for good."""
    if end.kind in ("finished", "stopped"):
        return end.step
    return _newest(job)


def _clear(config: Config, run_folder: Path, store: RunLocation | None, say: Say) -> None:
    """Remove what earlier commands left, unless one of them still trains; raises BusyError.

    The claims are released at once: the first worker holds them while it trains.
    """
    for change in changes(config, run_folder):
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


def _range(given: int | Range, config: Config) -> Range:
    workers = Range(given, given) if isinstance(given, int) else given
    if workers.low < workers.high and config.engine.zero_stage == 3:
        raise ClusterError(
            f"--workers {workers} with engine.zero_stage = 3: its states cannot be cut for another number of workers; "
            f"pass one number, e.g. --workers {workers.high}, or --engine.zero-stage 2"
        )
    return workers


def _resources(
    workers: Range, cpus_per_worker: int | None, use_gpu: bool | None, there: Sequence[Node], coming: Coming
) -> WorkerResources:
    """Return what each worker holds in all launches: as for the most workers that may fit."""
    for size in range(workers.high, workers.low - 1, -1):
        try:
            return nodes.resources_per_worker(
                there, workers=size, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu, coming=coming
            )
        except ClusterError as error:
            refusal = error
    raise refusal
