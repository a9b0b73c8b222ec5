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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cluster import nodes
from cluster.nodes import WorkerResources
from cluster.run.attempt import Background, FitError, root_message
from cluster.run.fit import Say
from cluster.run.policy import Range
from cluster.run.refusals import refuse
from cluster.run.signals import stop_on_signals
from cluster.run.worker import STOP, claim
from cluster.sweep import results
from cluster.sweep.remote_sweep import SweepStore
from cluster.sweep.search_space import SweepRecord, Trial
from cluster.sweep.trial import TrialActor, mark, state
from zfdist.config import Config
from zfdist.run_protocol import OVER

_SCRATCH = ".tune"
_HEAD = "node:__internal_head__"  # what waits for workers elsewhere sits on the head, and takes no CPU
_SHOW_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """How a sweep is run; none of this changes what a trial is."""

    metric: str = "valid/elbo_nats"
    mode: Literal["max", "min"] = "max"
    asha: bool = True
    grace_steps: int | None = None
    """No trial is stopped before; None for a quarter of the run, and at least one validation."""
    reduction_factor: float = 3.0
    """Of the trials that reach a rung, one in so many goes on; rungs are this factor apart."""
    workers: int = 1
    cpus_per_worker: int = 1
    use_gpu: bool | None = None
    gpus_per_trial: float | None = None
    """A part of one GPU for each trial, which has one worker then; None for a GPU a worker, see `use_gpu`."""
    profile: bool = False
    max_concurrent: int | None = None
    max_failures: int = 2


@dataclass
class Row:
    """What is known of a trial while the sweep runs."""

    trial: Trial
    folder: Path
    state: str = "waiting"
    step: int = 0
    latest: dict[str, Any] | None = None


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
        ClusterError: if a trial's workers do not fit.
        ZfdistError: what a trial would refuse (config, data, checkpoint); nothing is changed then.
        FitError: if trials failed; the others are finished first.
    """
    resources, at_once = _resources(plan)
    rows = {t.id: Row(t, folder / "trials" / t.id) for t in record.trials}
    if store is not None:
        store.fetch(rows)
    for row in rows.values():
        row.state = state(row.folder) or row.state
        if row.state not in OVER:
            refuse(base.with_values(row.trial.values), row.folder, Range(plan.workers, plan.workers), resources)
    over = sum(row.state in OVER for row in rows.values())
    say(f"{len(rows)} trials, {over} of them over, {at_once} at a time of {plan.workers} worker(s)")
    with claim(folder, wait_s=10), store.held() if store else contextlib.nullcontext():
        record.write(folder)
        on_accepted()
        if store is not None:
            store.send_results()
        (folder / STOP).unlink(missing_ok=True)
        if over < len(rows):
            tuner = _tuner(folder, base, rows, plan, resources, at_once, store)
            with stop_on_signals(folder, say):
                launch = Background(tuner.fit)
                while not launch.ended(within_s=_SHOW_EVERY_S):
                    show(list(rows.values()))
                    if store:
                        store.pass_on_stop(folder)
            launch.result()
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        found = _collected(folder, record.trials, plan, store)
    _refuse_failed(list(rows.values()))
    return found


def _resources(plan: SweepPlan) -> tuple[WorkerResources, int]:
    """Return what each worker holds, and how many trials run at a time."""
    cluster = nodes.alive()
    resources = nodes.resources_per_worker(
        cluster, workers=plan.workers, cpus_per_worker=plan.cpus_per_worker,
        use_gpu=plan.use_gpu, gpu_part=plan.gpus_per_trial,
    )  # fmt: skip
    at_once = max(1, nodes.room_for(cluster, resources) // plan.workers)
    return resources, min(at_once, plan.max_concurrent or at_once)


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
    found = results.collect(folder, trials, metric=plan.metric, mode=plan.mode)
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
    at_once: int,
    store: SweepStore | None,
) -> tune.Tuner:
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may end without a validation
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told by `sweep`
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    own = (
        {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
        if plan.workers == 1
        else {_HEAD: 0.001}
    )
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
            metric=plan.metric,
            mode=plan.mode,
            scheduler=_scheduler(base, plan),
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=str((folder / _SCRATCH).absolute()),
            failure_config=tune.FailureConfig(max_failures=plan.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Watch(rows, folder / STOP, store)],
            verbose=0,
        ),
    )


def _scheduler(base: Config, plan: SweepPlan) -> TrialScheduler:
    if not plan.asha:
        return FIFOScheduler()
    every, steps = base.train.validate_every, base.train.steps
    grace = plan.grace_steps or max(every, math.ceil(steps / 4 / every) * every)
    return ASHAScheduler(
        time_attr="step",
        grace_period=min(grace, steps),
        max_t=steps + 1,  # the last validation ends a trial by itself
        reduction_factor=plan.reduction_factor,
    )


class _Watch(tune.Callback):  # type: ignore[misc]
    """Sees in the driver what becomes of trials: keeps the rows, and ends those that the scheduler stopped."""

    def __init__(self, rows: Mapping[str, Row], sweep_stop: Path, store: SweepStore | None) -> None:
        self._rows = rows
        self._store = store
        self._sweep_stop = sweep_stop

    def __getstate__(self) -> dict[str, Any]:
        """Be nothing in the snapshot that Tune makes of itself, which nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, or gives its history again."""
        row = self._row(trial)
        if row.state == "waiting":
            row.state = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a validation."""
        if "step" in result:
            row = self._row(trial)
            row.step = int(result["step"])
            row.latest = {name: value for name, value in result.items() if name.startswith("valid/")}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark a trial that the scheduler stopped, and make its run end at once."""
        row = self._row(trial)
        if self._store is not None:
            self._store.fetch([row.trial.id])
        ended = state(row.folder)
        if ended is None and not self._sweep_stop.exists():
            mark(row.folder, state="stopped", step=row.step, **(row.latest or {}))
            if self._store is not None:
                self._store.send_mark(row.trial.id)
            with contextlib.suppress(OSError):
                (row.folder / STOP).touch()
            ended = "stopped"
        row.state = ended or "waiting"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a failure that came back each time."""
        row = self._row(trial)
        row.state = "failed"
        row.latest = {"error": root_message(trial.get_pickled_error())}

    def _row(self, trial: Any) -> Row:
        return self._rows[trial.config["job"]["id"]]
