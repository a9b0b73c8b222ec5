"""One launch of a run: a fixed number of workers, from their start to their end, whatever it is.

Ray Train places the workers, makes their process group and tells of deaths; it starts nothing again by itself. What
has to end at once is ended here, by freeing the placement group: that kills its processes, also stuck ones, on every
machine that can be reached, and those on the others end themselves (see `cluster.run.watchdog`).
"""

import contextlib
import dataclasses
import math
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train

from cluster import nodes, ray_internals
from cluster.nodes import Node, WorkerResources
from cluster.run.heartbeat import WorkerStatus, start_coordinator, worker_statuses
from cluster.run.policy import End, trouble
from cluster.run.process_group import Group
from cluster.run.watchdog import lease_s
from cluster.run.worker import work, worker_env
from zfdist import startup
from zfdist.checkpoint.room import no_room
from zfdist.errors import ZfdistError
from zfdist.run_options import RunOptions
from zfdist.run_protocol import ERRORS, STOP
from zfdist.worker import POLL_S, remove_if_unused

SCRATCH = ".ray"
_LOOK_S = 1.0  # how often the workers and machines are looked at
_ANSWER_S = 10.0
_DYING_S = 60.0
# Deterministic: the next attempt would end the same way.
_NON_RETRYABLE = (ZfdistError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError)
_BROKEN = ("gloo", "NCCL", "Connection")  # what a worker says whose peer died


class FitError(ZfdistError):
    """A run that ended without being finished or stopped; one sentence, and where to read more."""


class Background:
    """A call that runs in a thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self, *, within_s: float) -> bool:
        """Wait for the end for at most so long; return whether it has come."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised; waits for the end."""
        self._thread.join()
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def _run(self) -> None:
        try:
            self._outcome = (self._call(), None)
        except BaseException as error:  # to be raised where the result is wanted
            self._outcome = (None, error)


def launch(
    run: RunOptions,
    workers: int,
    resources: WorkerResources,
    reserved: Sequence[Any],
    *,
    follow: Callable[[], None],
    resize_reason: Callable[[list[WorkerStatus], list[Node]], str | None],
) -> End:
    """Train on `workers` processes until they end, or must be ended; nothing of them is left behind.

    Args:
        run: its options.
        workers: how many.
        resources: what each of them holds.
        reserved: placement groups with room for them, which are freed once the workers are asked for.
        follow: called a few times a second.
        resize_reason: called about once a second with all workers, once they train, and the machines; gives the reason
            why the launch should save and end, if any.
    """
    scratch = run.folder / SCRATCH / f"{time.time_ns():x}-{os.getpid()}"
    coordinator, before = start_coordinator(), nodes.alive()
    trainer = _trainer(run, workers, resources, reserved, scratch, coordinator)
    # In a thread: in the main one Ray takes over SIGINT.
    training = Background(trainer.fit)
    seen: list[WorkerStatus] = []
    why: str | None = None
    planned: str | None = None
    try:
        asked, next_look_s, given_up_s = False, 0.0, float("inf")
        while not training.ended(within_s=POLL_S) and time.monotonic() < given_up_s:
            follow()
            if time.monotonic() < next_look_s or why:
                continue
            next_look_s = time.monotonic() + _LOOK_S
            alive = nodes.alive()
            seen = _worker_statuses(coordinator) or seen
            there, timeout_s = {node.id for node in alive}, run.machines.hang_timeout
            why = trouble(seen, there, hang_timeout_s=timeout_s, lease_s=lease_s(timeout_s))
            if why:
                _destroy(seen)
                given_up_s = time.monotonic() + _DYING_S
            elif not asked:
                stop = (run.folder / STOP).exists()
                all_train = len(seen) == workers and all(s.heartbeat.step for s in seen)
                planned = resize_reason(seen, alive) if all_train and not stop else None
                if stop or planned:
                    coordinator.end.remote()
                    asked = True
        follow()
        seen = _worker_statuses(coordinator) or seen
    finally:
        _destroy(seen)
        _free(coordinator, trainer.controller, reserved)
        shutil.rmtree(scratch, ignore_errors=True)
        remove_if_unused(run.folder)
    step = max((s.heartbeat.step for s in seen), default=0)
    lost = End("lost", step, planned or why or "", planned is not None)
    return _ended(training, run.folder, seen, lost, bool(why), before)


def _trainer(
    run: RunOptions,
    workers: int,
    resources: WorkerResources,
    reserved: Sequence[Any],
    scratch: Path,
    coordinator: Any,
) -> Any:
    scratch.mkdir(parents=True)
    return ray_internals.launch_trainer()(
        work,
        reserved=reserved,
        train_loop_config={
            "run": dataclasses.replace(run, folder=run.folder.absolute()),
            "directory": Path.cwd(),
            "coordinator": coordinator,
            "launch": time.time_ns(),
            "startup": startup.so_far(),
        },
        backend_config=Group(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(resources.gpus), resources_per_worker=resources.bundle
        ),
        run_config=ray.train.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent.absolute()),
            failure_config=ray.train.FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            worker_runtime_env={"env_vars": worker_env(resources, run.config)},
        ),
    )


def _worker_statuses(coordinator: Any) -> list[WorkerStatus]:
    try:
        return worker_statuses(coordinator, within_s=_ANSWER_S)
    except ray.exceptions.RayError:  # just starting, or this machine is very busy
        return []


def _destroy(seen: list[WorkerStatus]) -> None:
    """End these workers and free what they hold; what is gone already is no error."""
    for group in {s.member.placement_group.id: s.member.placement_group for s in seen}.values():
        ray.util.remove_placement_group(group)
    for s in seen:
        ray.kill(s.member.actor)


def _free(coordinator: Any, controller: Any | None, reserved: Sequence[Any]) -> None:
    """Free what a launch holds however early it ended: workers that never joined, and room that was not yet used."""
    ray.kill(coordinator)
    if controller is not None:
        ray.kill(controller)  # its workers go with it; what it placed them in goes with the whole job only
        ray_internals.remove_placement_groups(of_actor=controller._actor_id.hex())
    for group in reserved:
        ray.util.remove_placement_group(group)


def _ended(
    training: Background,
    run_folder: Path,
    seen: list[WorkerStatus],
    end: End,
    ended_by_us: bool,
    before: Sequence[Node],
) -> End:
    """Return how it ended; `end` is that of a launch that was lost, `before` the machines that there were."""
    if not training.ended(within_s=0):
        return end
    try:
        outcome = training.result().return_value
    except Exception as error:
        if ended_by_us:
            return end
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        causes = map(cause_of, failures.values())
        non_retryable = next((cause for cause in causes if isinstance(cause, _NON_RETRYABLE)), None)
        non_retryable = non_retryable or no_room(error, run_folder)
        explained = _explained(error, non_retryable, run_folder)
        if non_retryable is not None:
            return end._replace(kind="refused", error=explained)
        if not seen and not failures:
            why = f"the workers could not be started{_while_lost(before)}"
            return end._replace(kind="unstarted", why=why, error=FitError(f"{why}: {explained}"))
        why = end.why if end.planned else _deaths(failures, seen, before) or root_message(error)
        return end._replace(why=why, error=explained)
    return End(outcome.state, outcome.step, end.why, end.planned)


def _while_lost(before: Sequence[Node]) -> str:
    """Return e.g. " (10.77.0.3 was lost meanwhile)"; nothing if all machines are still there."""
    there = {node.id for node in nodes.alive()}
    gone = [node.ip for node in before if node.id not in there]
    return f" ({', '.join(gone)} {'was' if len(gone) == 1 else 'were'} lost meanwhile)" if gone else ""


def _deaths(failures: dict[int, Exception], seen: list[WorkerStatus], before: Sequence[Node]) -> str:
    """Return e.g. "lost worker 1 on 10.77.0.3: the process died"; who died comes before who failed because of it."""
    gone = trouble(seen, {n.id for n in nodes.alive()}, hang_timeout_s=math.inf, lease_s=math.inf)
    if gone:
        return gone
    named = {s.member.rank: f"worker {s.member.rank} on {s.member.ip}" for s in seen}
    died = [rank for rank, error in failures.items() if ray_internals.is_lost_worker(error)]
    if died:
        who = named.get(min(died)) or f"worker {min(died)} as it started"
        return f"lost {who}: the process died{_while_lost(before)}"
    silent = [name for rank, name in named.items() if rank not in failures]
    messages = {rank: root_message(error) for rank, error in sorted(failures.items())}
    if silent and all(any(sign in message for sign in _BROKEN) for message in messages.values()):
        return f"lost {' or '.join(silent)}: its connection broke"  # Ray has not noticed yet
    return next((f"lost {named.get(rank, f'worker {rank}')}: {message}" for rank, message in messages.items()), "")


def cause_of(error: BaseException) -> BaseException:
    """Return what a task or actor raised, as it was: what Ray raises here has the remote traceback for its message."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def root_message(error: BaseException) -> str:
    """Return one line for what went wrong at the bottom of an exception that came through Ray."""
    error = cause_of(error)
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" in lines[0]:
        return lines[-1]  # of the traceback that is its message
    return lines[0] if isinstance(error, ZfdistError) else f"{type(error).__name__}: {lines[0]}"


def _explained(error: Exception, cause: BaseException | None, run_folder: Path) -> Exception:
    """Return the error that a person should see for what Ray Train raised."""
    if isinstance(cause, ZfdistError):
        return cause
    with contextlib.suppress(OSError), (run_folder / ERRORS).open("a") as errors:  # the disk may be what failed
        errors.write("".join(traceback.format_exception(error)) + "\n")
    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    return FitError(f"{root_message(cause or causes[0])} (details in {run_folder / ERRORS})")
