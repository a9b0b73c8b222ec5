"""One training run on N workers: launches of zfdist.train on the machines that there are, until it is done.

The run folder, on a filesystem that all workers share, is the only truth: `zfdist.train` writes checkpoints there and
goes on from them, with any number of workers. So whatever ends a launch is answered in one way: look what machines
there are, and launch again. Ray holds nothing that a run needs; its own files live in a scratch folder of one launch.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster import nodes
from cluster.demand import Demand, Say, Supply
from cluster.nodes import Coming, Node, WorkerResources
from cluster.run.attempt import SCRATCH, FitError, launch
from cluster.run.policy import End, counts, what_next
from cluster.run.resize import ResizeReason
from cluster.run.team import RunLog, Team, count, describe
from cluster.session import ClusterError
from zfdist import lease, startup
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import room
from zfdist.checkpoint.run_folder import changes, is_finished
from zfdist.checkpoint.run_sync import FOLLOW_S
from zfdist.object_store import ObjectFolder
from zfdist.refusals import refuse
from zfdist.run_options import Machines, Range, RunOptions
from zfdist.run_protocol import LOG, STOP, Outcome
from zfdist.signals import stop_on_signals
from zfdist.tail import follower
from zfdist.worker import claim


def fit(
    run: RunOptions,
    *,
    on_accepted: Callable[[], None] = lambda: None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    say: Say = print,
) -> Outcome:
    """Train until the run is finished or stopped (once saved, by SIGTERM or SIGINT too); needs a connected Ray.

    Args:
        run: its options. What its folder holds is gone on with. A range of workers shrinks with the machines and grows
            with them; no resize, and no machine taken away with notice, counts as one of `max_failures`.
        on_accepted: called once nothing of it was refused, before the first launch.
        on_report: called here with each new record of metrics.jsonl.
        say: told what happens.

    Raises:
        ClusterError: if the workers do not fit, or too few machines came back. BusyError: another process trains it.
        ZfdistError: what the run itself refuses (config, data, checkpoint). NoRoomError: if a disk is full.
        FitError: if it failed in another way.
    """
    workers = _workers(run)
    steps = run.config.train.steps
    if is_finished(run.config, run.folder):
        say(f"{run.folder} is finished ({steps} steps); raise --train.steps to go on")
        return Outcome("finished", steps)
    supply = Supply(run.machines.wait_for_nodes, say)
    resources = supply.plan(lambda there, coming: _resources(workers, run.machines, there, coming))
    refuse(run, device=resources.device, workers=range(workers.low, workers.high + 1))
    _clear(run, say)
    on_accepted()
    run_log = _run_log(run, on_report, say)
    try:
        with room.explained(run.folder), stop_on_signals(run.folder, say), Demand(resources) as demand:
            return _launches(run, Team(workers, resources, demand, supply, run_log, run.folder / STOP))
    finally:
        shutil.rmtree(run.folder / SCRATCH, ignore_errors=True)


def _launches(run: RunOptions, team: Team) -> Outcome:
    """Launch again and again, until the run is over."""
    stop, run_log = team.stop, team.run_log
    deaths = false_starts = 0
    size = team.assemble(gathers=True)
    while size:
        run_log.note(f"starting {count(size)} ({describe(team.resources)} each) ...")
        startup.ended("placement")
        reason = ResizeReason(team.demand, size, team.workers, run.machines.grow_every)
        reserved = team.demand.take()
        end = launch(run, size, team.resources, reserved, follow=run_log.follow, resize_reason=reason)
        deaths += counts(end)
        false_starts = false_starts + 1 if end.kind == "unstarted" else 0
        move = what_next(
            end,
            deaths=deaths,
            max_failures=run.machines.max_failures,
            false_starts=false_starts,
            stop_asked=stop.exists(),
        )
        if move == "over":
            if run.store is not None:
                time.sleep(2 * FOLLOW_S)  # what it wrote last is on its way
            run_log.follow()
            return Outcome("finished" if end.kind == "finished" else "stopped", _step(run, end))
        if move == "give up":
            raise end.error or FitError(f"{end.why}, and that was death {deaths}; see {run.folder / LOG}")
        was = f" at step {end.step}" if end.step else ""
        run_log.note(f"{end.why}{was}; starting again from step {_step(run, end)} ...")
        startup.begin([startup.Phase("", time.time())])
        size = team.assemble()
    return Outcome("stopped", _newest(run))


def _run_log(run: RunOptions, on_report: Callable[[dict[str, Any]], None] | None, say: Say) -> RunLog:
    def note(line: str) -> None:
        with (run.folder / LOG).open("a") as log:
            log.write(f"{line}\n")

    return RunLog(note if run.store is None else say, follower(run.folder, say, on_report))


def _step(run: RunOptions, end: End) -> int:
    """Return the step that the run has come to for good."""
    if end.kind in ("finished", "stopped"):
        return end.step
    return _newest(run)


def _clear(run: RunOptions, say: Say) -> None:
    """Remove what earlier commands left, unless one of them still trains; raises BusyError.

    The claims are released at once: the first worker holds them while it trains.
    """
    for change in changes(run.config, run.folder):
        say(f"changed since the last time: {change}")
    if run.store is not None:
        with lease.held(ObjectFolder(run.store.uri), run.store.owner, 0, wait_s=1.5 * lease.STALE_S):
            pass
    with claim(run.folder, wait_s=10):
        (run.folder / STOP).unlink(missing_ok=True)
        shutil.rmtree(run.folder / SCRATCH, ignore_errors=True)


def _newest(run: RunOptions) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    if run.store is None:
        return max(checkpoint.steps(run.folder), default=0)
    # It imports torch: not in a command that has nothing in a store.
    from zfdist.checkpoint import remote_checkpointer

    return max(remote_checkpointer.steps(ObjectFolder(run.store.uri)), default=0)


def _workers(run: RunOptions) -> Range:
    workers = Range.parsed(run.machines.workers)
    if workers.low < workers.high and run.config.engine.zero_stage == 3:
        raise ClusterError(
            f"--workers {workers} with engine.zero_stage = 3: its states cannot be cut for another number of workers; "
            f"pass one number, e.g. --workers {workers.high}, or --engine.zero-stage 2"
        )
    return workers


def _resources(workers: Range, machines: Machines, there: Sequence[Node], coming: Coming) -> WorkerResources:
    """Return what each worker holds in all launches: as for the most workers that may fit."""
    for size in range(workers.high, workers.low - 1, -1):
        try:
            return nodes.resources_per_worker(
                there, workers=size, cpus_per_worker=machines.cpus_per_worker, use_gpu=machines.gpu, coming=coming
            )
        except ClusterError as error:
            refusal = error
    raise refusal
