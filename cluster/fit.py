"""One training run on N workers: zfdist.train inside Ray Train.

The run folder, on a filesystem that all workers share, is the only truth: `zfdist.train` writes checkpoints there and
goes on from them. Ray starts the workers, watches them and starts them again; it holds nothing that a run needs, so
its own files live in a scratch folder of one launch and may be torn or lost.
"""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from cluster import nodes
from cluster.follow import LOG, Lines, Records
from cluster.nodes import Share
from cluster.worker import ERRORS, POLL_S, STOP, Backend, claim, work, worker_env
from zfdist import metrics
from zfdist.build import RESULT
from zfdist.config import Config, ConfigError
from zfdist.train import NonFiniteError, Outcome

_SCRATCH = ".ray"
_SAME_SIGNAL_S = 1.0  # timeout and others signal a process and then its group
_START_ATTEMPTS = 5  # of Ray's 60 s each, while other programs hold what the cluster has
# Deterministic: the next attempt would end the same way.
_HOPELESS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, NonFiniteError)

Say = Callable[[str], None]


class FitError(RuntimeError):
    """A run that ended without being finished or stopped; one sentence, and where to read more."""


def fit(
    config: Config,
    run_folder: Path,
    *,
    workers: int = 1,
    cpus_per_worker: int | None = None,
    use_gpu: bool | None = None,
    max_failures: int = 3,
    start_from: Path | None = None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    say: Say = print,
) -> Outcome:
    """Train on `workers` processes until the run is finished or asked to stop; needs a connected Ray.

    In the main thread, SIGTERM or SIGINT make the run save and end; a second one aborts.

    Args:
        config: the whole run.
        run_folder: shared by all workers; holds the run, and is gone on with if it was begun.
        workers: processes that share each global batch.
        cpus_per_worker: None for an even part of what the cluster has.
        use_gpu: a GPU for each worker; None if the cluster has any.
        max_failures: deaths of workers that are answered by starting all of them again from the newest checkpoint.
        start_from: a checkpoint, run or export whose weights a new run starts from.
        on_report: called here with each new record of metrics.jsonl.
        say: told what happens.

    Raises:
        ClusterError: if the workers do not fit.
        BusyError: if the run is being trained by another process.
        ValueError: what the run itself refuses (config, data, checkpoint).
        FitError: if it failed in another way.
    """
    if _is_finished(config, run_folder):
        say(f"{run_folder} is finished ({config.train.steps} steps); raise --train.steps to go on")
        return Outcome("finished", config.train.steps)
    share = nodes.share_of(nodes.alive(), workers=workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu)
    for change in _changes(config, run_folder):
        say(f"changed since the last time: {change}")
    with claim(run_folder, wait_s=10):  # and released at once: the first worker holds it while it trains
        scratch = _prepare(run_folder)
    trainer = _trainer(config, run_folder, scratch, workers, share, max_failures, start_from)
    say(f"starting {workers} worker{'s' * (workers > 1)} ({_describe(share)} each) ...")
    with stop_on_signals(run_folder, say):
        launch = _follow(trainer, run_folder, on_report, say)
    try:
        outcome: Outcome = launch.result().return_value
    except ray.train.TrainingFailedError as error:
        raise _explained(error, run_folder) from None
    finally:
        shutil.rmtree(scratch.parent, ignore_errors=True)
    return outcome


def _follow(
    trainer: TorchTrainer, run_folder: Path, on_report: Callable[[dict[str, Any]], None] | None, say: Say
) -> "Background":
    """Start the workers and pass on what they write, until they have ended."""
    records = Records(run_folder / metrics.FILE, from_start=False)
    notes = Lines(run_folder / LOG, from_start=False)
    launch = Background(trainer.fit)  # in a thread: in the main one Ray would take over SIGINT
    running = True
    while running:
        running = not launch.ended(within_s=POLL_S)
        for note in notes.new():
            say(note.rstrip("\n"))
        for record in records.new():
            if on_report:
                on_report(record)
    return launch


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


@contextlib.contextmanager
def stop_on_signals(run_folder: Path, say: Say) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT ask the run to save and end, and a second one abort; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    asked_s: list[float] = []

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if asked_s:
            if time.monotonic() - asked_s[0] > _SAME_SIGNAL_S:
                raise KeyboardInterrupt
            return
        asked_s.append(time.monotonic())
        (run_folder / STOP).touch()
        say("saving, then stopping (once more to abort at once) ...")

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])


def _is_finished(config: Config, run_folder: Path) -> bool:
    """Return whether exactly this run has ended."""
    if not (run_folder / RESULT).is_file() or _changes(config, run_folder):
        return False
    return bool(json.loads((run_folder / RESULT).read_text()).get("step") == config.train.steps)


def _changes(config: Config, run_folder: Path) -> list[str]:
    """Return what differs from the config that the run had before; whether it may is for `train` to say."""
    try:
        before = Config.from_json((run_folder / "config.json").read_text()).flat()
    except (OSError, ConfigError):  # a new run, or one that another version began
        return []
    return [f"{name} {before[name]} -> {value}" for name, value in config.flat().items() if before[name] != value]


def _prepare(run_folder: Path) -> Path:
    """Clear what earlier launches left; return this launch's scratch folder."""
    (run_folder / STOP).unlink(missing_ok=True)
    shutil.rmtree(run_folder / _SCRATCH, ignore_errors=True)
    scratch = run_folder / _SCRATCH / f"{time.time_ns():x}-{os.getpid()}"
    scratch.mkdir(parents=True)
    return scratch


def _trainer(
    config: Config,
    run_folder: Path,
    scratch: Path,
    workers: int,
    share: Share,
    max_failures: int,
    start_from: Path | None,
) -> TorchTrainer:
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    return TorchTrainer(
        work,
        train_loop_config={
            "config": config,
            "run_folder": run_folder.absolute(),
            "start_from": start_from,
            "directory": Path.cwd(),
        },
        torch_config=Backend(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=bool(share.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent.absolute()),
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures, controller_failure_limit=_START_ATTEMPTS - 1
            ),
            callbacks=[_Failures(run_folder.absolute())],
            worker_runtime_env={"env_vars": worker_env(share, config)},
        ),
    )


class _Failures(ray.train.UserCallback):  # type: ignore[misc]
    """Runs in Ray's controller: notes the death of workers, and ends a run that would only fail again."""

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, _HOPELESS):
                raise error
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        with (self._run_folder / LOG).open("a") as log:
            log.write(f"lost worker {ranks}; starting all again from the newest checkpoint ...\n")


def root_message(error: BaseException) -> str:
    """Return one line for what went wrong at the bottom of an exception that came through Ray."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if is_ours(error) else f"{type(error).__name__}: {lines[0]}"


def is_ours(error: BaseException) -> bool:
    """Return whether this project defines the error, whose message then is a sentence for people."""
    return type(error).__module__.split(".")[0] in ("zfdist", "cluster")


def _explained(error: Exception, run_folder: Path) -> Exception:
    """Return the error that a person should see for what Ray Train raised."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for cause in causes:
        if is_ours(cause) and isinstance(cause, ValueError):
            return cause
    with (run_folder / ERRORS).open("a") as errors:
        errors.write("".join(traceback.format_exception(error)) + "\n")
    return FitError(f"{root_message(causes[0])} (details in {run_folder / ERRORS})")


def _describe(share: Share) -> str:
    return f"{share.cpus} CPU{'s' * (share.cpus != 1)}" + (f", {share.gpus} GPU" if share.gpus else "")
