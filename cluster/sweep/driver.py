"""A search space -> Ray Tune trials, each one run; the folder of the sweep is all that a resume needs.

    runs/NAME/sweep.json                the base config, the space, the trials
    runs/NAME/trials/000/ 001/ ...      a run folder for each trial
    runs/NAME/results.json results.csv  the trials by objective, best first

Nothing of Ray's is kept: the same command makes the same trials and hands them to a fresh Tuner, where a trial that was
begun gives its recorded validations again before it goes on.
"""

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from cluster import nodes
from cluster.demand import Say, Shortage, Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import Background, FitError
from cluster.sweep import results
from cluster.sweep.plan import SweepPlan
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.search_space import SweepRecord, Trial
from cluster.sweep.trial import TrialActor, state
from cluster.sweep.watch import Crowd, Row, Watch
from zfdist.checkpoint import room
from zfdist.config import Config
from zfdist.refusals import refuse
from zfdist.run_options import RunOptions
from zfdist.run_protocol import OVER, STOP
from zfdist.signals import stop_on_signals
from zfdist.worker import claim

_SCRATCH = ".tune"
_SHOW_EVERY_S = 1.0


def sweep(
    folder: Path,
    base: Config,
    record: SweepRecord,
    plan: SweepPlan,
    *,
    show: Callable[[Sequence[Row]], None],
    on_accepted: Callable[[], None] = lambda: None,
    say: Say = print,
    store: SweepStore | None = None,
) -> list[dict[str, Any]]:
    """Train all trials that are not over yet; needs a connected Ray. SIGTERM or SIGINT saves and stops all of them.

    Args:
        folder: of the sweep; see `prepare`.
        base: the config that trials change.
        record: its trials: what `space.prepare` gave.
        plan: objective, early stopping, workers.
        show: called about once a second with the state of all trials.
        on_accepted: called once nothing of it was refused, before the first trial.
        say: told what happens.
        store: of a sweep in an object store, which `folder` follows.

    Returns:
        One result for each trial that has any, best first: id, folder, state, step, values, objective and validation.

    Raises:
        ClusterError: if a trial's workers do not fit, or no machines came that could hold them.
        ZfdistError: what a trial would refuse (config, data, checkpoint); nothing is changed then.
        FitError: if trials failed; the others are finished first.
        NoRoomError: if a disk is full; all trials are stopped then.
    """
    supply = Supply(None, say)
    resources = _resources(plan, supply)
    rows = _rows(folder, base, record, plan, resources, store)
    over = sum(row.state in OVER for row in rows.values())
    crowd = Crowd(plan.workers, plan.machines.max_concurrent, resources, supply)
    say(f"{len(rows)} trials, {over} of them over, {crowd.limit()} at a time of {plan.workers} worker(s)")
    with room.explained(folder), claim(folder, wait_s=10), store.held() if store else contextlib.nullcontext():
        record.write(folder)
        on_accepted()
        if store is not None:
            store.send_results()
        (folder / STOP).unlink(missing_ok=True)
        if over < len(rows):
            search = BasicVariantGenerator(max_concurrent=crowd.limit())
            watch = Watch(rows, folder / STOP, store, search, crowd)
            tuner = _tuner(folder, base, rows, plan, resources, search, watch, store)
            shortage = Shortage(supply, resources, say, others_ask_instead=plan.workers > 1)
            with stop_on_signals(folder, say):
                for _ in _until_over(tuner, folder / STOP, shortage, plan, crowd, rows):
                    show(list(rows.values()))
                    if store:
                        store.pass_on_stop(folder)
            if watch.no_room is not None:
                raise room.NoRoomError(f"{watch.no_room}; the sweep has stopped, the same command goes on with it")
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        found = _collected(folder, record.trials, plan, store)
    _refuse_failed(list(rows.values()))
    return found


def _rows(
    folder: Path,
    base: Config,
    record: SweepRecord,
    plan: SweepPlan,
    resources: WorkerResources,
    store: SweepStore | None,
) -> dict[str, Row]:
    """Return what is known of the trials by their ids; raises what one of those to come would refuse."""
    rows = {t.id: Row(t, folder / "trials" / t.id) for t in record.trials}
    if store is not None:
        store.fetch(rows)
    for row in rows.values():
        row.state = state(row.folder) or row.state
        if row.state not in OVER:
            trial = RunOptions(base.with_values(row.trial.values), row.folder)
            refuse(trial, device=resources.device, workers=[plan.workers])
    return rows


def _resources(plan: SweepPlan, supply: Supply) -> WorkerResources:
    """Return what each worker of a trial holds."""
    return supply.plan(
        lambda there, coming: nodes.resources_per_worker(
            there,
            workers=plan.workers,
            cpus_per_worker=plan.machines.cpus_per_worker,
            use_gpu=plan.machines.gpu,
            gpu_part=plan.machines.gpus_per_trial,
            coming=coming,
        )
    )


def _until_over(
    tuner: tune.Tuner, stop: Path, shortage: Shortage, plan: SweepPlan, crowd: Crowd, rows: Mapping[str, Row]
) -> Iterator[None]:
    """Run the trials; yields about once a second until they are over, or stopped.

    Raises:
        ClusterError: if machines are missing for too long. Tune itself would wait for ever.
    """
    launch = Background(tuner.fit)
    while not launch.ended(within_s=_SHOW_EVERY_S):
        yield
        if not stop.exists():
            shortage.look(plan.workers, most=crowd.wanted(rows.values()))
        elif not shortage.has_room_for(plan.workers):
            return  # no trial is left that could hear of it
    launch.result()


def _refuse_failed(rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        raise FitError(
            f"{len(failed)} of {len(rows)} trials failed, the first with: {(failed[0].latest or {}).get('error')} "
            f"(details in {failed[0].folder}); the same command tries them again"
        )


def _collected(
    folder: Path, trials: Sequence[Trial], plan: SweepPlan, store: SweepStore | None
) -> list[dict[str, Any]]:
    """Return what the trials came to, and write it down."""
    if store is not None:
        store.fetch(t.id for t in trials)
    found = results.collect(folder, trials, metric=plan.stopping.metric, mode=plan.stopping.mode)
    if store is not None:
        found = [result | {"folder": f"{store.shown}/trials/{result['id']}"} for result in found]
    results.write(folder, found)
    if store is not None:
        store.send_results()
    return found


def _tuner(
    folder: Path,
    base: Config,
    rows: Mapping[str, Row],
    plan: SweepPlan,
    resources: WorkerResources,
    search: BasicVariantGenerator,
    watch: Watch,
    store: SweepStore | None,
) -> tune.Tuner:
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may end without a validation
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told by `sweep`
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    own = resources.bundle if plan.workers == 1 else {nodes.HEAD: 0.001}  # what waits for workers takes no CPU
    # Those that are over come first: they take no time, and fill the scheduler's rungs for the others.
    order = sorted(rows.values(), key=lambda row: row.state not in OVER)
    jobs = [
        {
            "id": row.trial.id,
            "folder": str(row.folder.absolute()),
            "sweep_stop": str((folder / STOP).absolute()),
            "directory": str(Path.cwd()),
            "config": base.with_values(row.trial.values).to_json(),
            "resources": tuple(resources),
            "workers": plan.workers,
            "profile": plan.profile,
            "store": store and tuple(store.of_trial(row.trial.id)),  # of a named tuple Tune makes a plain one
            "sweep_uri": store and store.uri,
        }
        for row in order
    ]
    return tune.Tuner(
        tune.with_resources(TrialActor, tune.PlacementGroupFactory([own])),
        param_space={"job": tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            metric=plan.stopping.metric,
            mode=plan.stopping.mode,
            search_alg=search,
            scheduler=_scheduler(base, plan),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=str((folder / _SCRATCH).absolute()),
            failure_config=tune.FailureConfig(max_failures=plan.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[watch],
            verbose=0,
        ),
    )


def _scheduler(base: Config, plan: SweepPlan) -> TrialScheduler:
    if not plan.stopping.asha:
        return FIFOScheduler()
    every, steps = base.train.validate_every, base.train.steps
    grace = plan.stopping.grace_steps or max(every, math.ceil(steps / 4 / every) * every)
    return ASHAScheduler(
        time_attr="step",
        grace_period=min(grace, steps),
        max_t=steps + 1,  # the last validation ends a trial by itself
        reduction_factor=plan.stopping.reduction_factor,
    )
