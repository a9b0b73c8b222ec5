"""A search space -> Ray Tune trials, each one run; the folder of the sweep is all that a resume needs.

    runs/NAME/sweep.json                the base config, the space, the listed trials
    runs/NAME/trials/000/ 001/ ...      a run folder for each trial: also what a search suggested, and what was decided
    runs/NAME/results.json results.csv  the trials by objective, best first

Nothing of Ray's is kept: the same command tells a fresh scheduler and a fresh search what the folder holds, and gives a
fresh Tuner the trials that are not over.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from cluster import nodes
from cluster.demand import Say, Shortage, Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import Background, FitError
from cluster.sweep import journal, results
from cluster.sweep.budget import Budget
from cluster.sweep.plan import SweepPlan
from cluster.sweep.record import SweepRecord, suggestions
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.row import Row, stop
from cluster.sweep.schedulers import Journaled, Judge, stock
from cluster.sweep.search_space import Trial
from cluster.sweep.searcher import NextTrial
from cluster.sweep.trial import TrialActor
from cluster.sweep.watch import Crowd, Watch
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
        record: its trials: what `record.prepare` gave.
        plan: objective, early stopping, search, workers.
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
    crowd = Crowd(plan.workers, plan.machines.trials_at_once, resources, supply)
    total = len(rows) + record.to_suggest
    say(f"{total} trials, {over} of them over, {crowd.limit()} at a time of {plan.workers} worker(s)")
    with room.explained(folder), claim(folder, wait_s=10), store.held() if store else contextlib.nullcontext():
        _begin(folder, record, on_accepted, store)
        judge = _judge_of_before(base, rows, plan, store)
        to_come = sum(row.state not in OVER for row in rows.values()) + record.to_suggest
        if to_come:
            search = _search(folder, base, rows, record, plan, resources, crowd, store)
            watch = Watch(rows, folder / STOP, store, search.set_limit, crowd)
            tuner = _tuner(folder, plan, resources, search, to_come, Journaled(*judge, rows, store), watch)
            shortage = Shortage(supply, resources, say, others_ask_instead=plan.workers > 1)
            with stop_on_signals(folder, say), Budget(folder, plan.time_budget_s, plan.spent_before_s) as budget:
                for _ in _until_over(tuner, folder / STOP, shortage, plan, crowd, rows):
                    show(list(rows.values()))
                    budget.look(say)
                    if store:
                        store.pass_on_stop(folder)
            if watch.no_room is not None:
                raise room.NoRoomError(f"{watch.no_room}; the sweep has stopped, the same command goes on with it")
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        found = _collected(folder, [row.trial for row in rows.values()], plan, store)
    _refuse_failed(list(rows.values()))
    return found


def _begin(folder: Path, record: SweepRecord, on_accepted: Callable[[], None], store: SweepStore | None) -> None:
    """Write down what the sweep is, once nothing of it was refused."""
    record.write(folder)
    on_accepted()
    if store is not None:
        store.send_results()
    (folder / STOP).unlink(missing_ok=True)


def _rows(
    folder: Path,
    base: Config,
    record: SweepRecord,
    plan: SweepPlan,
    resources: WorkerResources,
    store: SweepStore | None,
) -> dict[str, Row]:
    """Return what is known of the trials by their ids; raises what one of those to come would refuse."""
    made = suggestions(folder)
    rows = {
        t.id: Row(t, folder / "trials" / t.id, notes=made[t.id].notes if t.id in made else {}) for t in record.trials
    }
    if store is not None:
        store.fetch(rows)
    for row in rows.values():
        row.read()
        if row.state not in OVER:
            trial = RunOptions(base.with_values(row.trial.values), row.folder)
            refuse(trial, device=resources.device, workers=[plan.workers])
    return rows


def _judge_of_before(
    base: Config, rows: Mapping[str, Row], plan: SweepPlan, store: SweepStore | None
) -> tuple[Judge, int]:
    """Return a scheduler that knows all that was decided before, and the order of the next event.

    What a run folder of a trial that is over recorded and no driver has seen is taken as decided now: the driver was
    killed in between, or is of a version that kept no journal.
    """
    judge = Judge(stock(plan.stopping, plan.goal, base))
    events = journal.in_order(event for row in rows.values() for event in row.events)
    judge.replay(events)
    order = events[-1].order + 1 if events else 0
    for row in rows.values():
        if row.events and row.events[-1].decision == "STOP":
            if row.state not in OVER:
                stop(row, store)
        elif row.state in OVER:
            for event in journal.without_journal(row.folder, row.trial.id, order):
                if event.step > row.step:
                    judge.decide(row.trial.id, event.result, is_last=event.decision == "END")
                    journal.write(row.folder, event)
                    row.events.append(event)
                    order = event.order + 1
            if store is not None and row.events:
                store.send(row.trial.id, journal.FILE)
    return judge, order


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
    yield  # so that the last change is seen


def _refuse_failed(rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        raise FitError(
            f"{len(failed)} of {len(rows)} trials failed, the first with: {failed[0].error} "
            f"(details in {failed[0].folder}); the same command tries them again"
        )


def _collected(
    folder: Path, trials: Sequence[Trial], plan: SweepPlan, store: SweepStore | None
) -> list[dict[str, Any]]:
    """Return what the trials came to, and write it down."""
    if store is not None:
        store.fetch(t.id for t in trials)
    found = results.collect(folder, trials, plan.goal)
    if store is not None:
        found = [result | {"folder": f"{store.shown}/trials/{result['id']}"} for result in found]
    results.write(folder, found)
    if store is not None:
        store.send_results()
    return found


def _search(
    folder: Path,
    base: Config,
    rows: dict[str, Row],
    record: SweepRecord,
    plan: SweepPlan,
    resources: WorkerResources,
    crowd: Crowd,
    store: SweepStore | None,
) -> NextTrial:
    """Return what gives Tune the trials."""

    def job(row: Row) -> dict[str, Any]:
        return {
            "id": row.trial.id,
            "folder": str(row.folder.absolute()),
            "sweep_stop": str((folder / STOP).absolute()),
            "directory": str(Path.cwd()),
            "config": base.with_values(row.trial.values).to_json(),
            "step": row.step,
            "resources": tuple(resources),
            "workers": plan.workers,
            "profile": plan.profile,
            "store": store and tuple(store.of_trial(row.trial.id)),  # of a named tuple Tune makes a plain one
            "sweep_uri": store and store.uri,
        }

    return NextTrial(
        rows, job, folder, folder / STOP, plan.search, record.to_suggest, plan.before, crowd.limit(), store
    )


def _tuner(
    folder: Path,
    plan: SweepPlan,
    resources: WorkerResources,
    search: NextTrial,
    to_come: int,
    scheduler: Journaled,
    watch: Watch,
) -> tune.Tuner:
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may end without a validation
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "200"  # the search itself says when there is room for one more
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told by `sweep`
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    own = resources.bundle if plan.workers == 1 else {nodes.HEAD: 0.001}  # what waits for workers takes no CPU
    return tune.Tuner(
        tune.with_resources(TrialActor, tune.PlacementGroupFactory([own])),
        tune_config=tune.TuneConfig(num_samples=to_come, search_alg=search, scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=str((folder / _SCRATCH).absolute()),
            failure_config=tune.FailureConfig(max_failures=plan.machines.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[watch],
            verbose=0,
        ),
    )
