"""THE loop: build, restore, step, log, validate, save.

    build data, network, engine; restore the newest intact checkpoint, if there is one
    for step in start .. steps:
        batch   = loader(step)                          a pure function of (seed, step)
        terms   = network(batch, noise(seed, step))
        loss    = objective(terms, weights(step))       mean over the global batch
        engine: backward, reduce, clip, check finite, update
        now and then: log, validate, checkpoint (of the best validations too), report

The step is the whole position of a run: order, noise, weights and learning rate are functions of it. A checkpoint
therefore holds parameters, optimizer state, the step, and the sums of the log window that it fell into.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from zfdist import atomic_io, metrics, schedule, seeding, startup, updates
from zfdist.build import Run, Unread, build
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import room, run_folder
from zfdist.checkpoint.folder import CheckpointManifest
from zfdist.checkpoint.room import NoRoomError
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.config import Config
from zfdist.data.as_trained import vocabulary_sha256, words_as_file
from zfdist.data.loader import Batch, evaluation_batches
from zfdist.engine import OPTIMIZER, Update
from zfdist.evaluation.evaluate import evaluate
from zfdist.model.objective import Loss, objective
from zfdist.profile import profiled, span, spanned
from zfdist.run_protocol import VALID_ELBO, VALIDATION, Outcome, Reporter, Weights
from zfdist.world import World, gpu_memory_explained


def train(
    config: Config,
    run_folder: Path,
    world: World,
    reporter: Reporter,
    start_from: Weights | None = None,
    copy: WorkingCopy | None = None,
    profile: bool = False,
) -> Outcome:
    """Train until `train.steps` or until asked to stop; a run folder that holds checkpoints is resumed.

    Args:
        config: the whole run; every worker passes the same.
        run_folder: a folder that all workers share; or, with `copy`, this node's own.
        world: this worker's place.
        reporter: told of validations and checkpoints, on every worker.
        start_from: whose weights a new run starts from.
        copy: of a run that lives in a store: `run_folder` is its working copy on this node.
        profile: also write where the time goes, see `zfdist.profile`; changes no number of the run.

    Raises:
        CheckpointError: if what is there cannot be resumed with this config or data.
        GpuMemoryError: if it does not fit into its GPU's memory.
        NonFiniteError: after `engine.max_nonfinite_steps` skipped updates in a row.
        NoRoomError: if a disk is full; for a checkpoint see `checkpoint.max_failures`.
        StorageError: if the run lives in a store that failed so often in a row, or was taken over by another process.
    """
    threads = torch.get_num_threads()
    if config.engine.threads_per_worker:
        torch.set_num_threads(config.engine.threads_per_worker)
    try:
        with room.explained(run_folder), gpu_memory_explained():
            return _train(build(config, run_folder, world, start_from, copy), reporter, profile)
    finally:
        torch.set_num_threads(threads)  # a small network takes fewer, and the next one in this process may be large


def _train(run: Run, reporter: Reporter, profile: bool) -> Outcome:
    try:
        with profiled(
            run.folder if profile else None, run.world.rank, say=lambda line: print(line, flush=True)
        ) as step:
            state = _loop(run, reporter, step)
        if run.world.rank == 0:
            if state == "finished":
                metrics.write_result(run.folder, run.step)
            print(f"step {run.step:,}: {run_folder.choice(run.folder, run.checkpointer.scores())}", flush=True)
        return Outcome(state, run.step)
    finally:
        if run.log:
            run.log.close()
        run.checkpointer.close()
        run.engine.close()


def _loop(run: Run, reporter: Reporter, close_step: Callable[[], None]) -> Literal["finished", "stopped"]:
    every, steps = run.config.train, run.config.train.steps
    for micro_batches in run.meter.timed(run.loader.iterate(run.step, steps)):
        _update(run, micro_batches)
        run.step += 1
        startup.tell("first step", says=run.world.rank == 0)
        run.checkpointer.check()
        reporter.progress(run.step)
        last = run.step == steps
        stop = run.world.any(reporter.should_stop()) and not last
        steps_of_notice = (every.log_every, every.validate_every, run.config.checkpoint.every_steps)
        if last or stop or any(run.step % n == 0 for n in steps_of_notice):
            updates.read_back(run)
        if last or run.step % every.log_every == 0:
            with span("logging"):
                _write(run, run.meter.flush(run.world) | _weights(run))
        validation = _validate(run, reporter) if last or run.step % every.validate_every == 0 else None
        is_best = validation is not None and run.checkpointer.is_among_best(run.step, validation[VALID_ELBO])
        saves = last or stop or is_best or run.step % run.config.checkpoint.every_steps == 0
        folder = _save(run, validation, is_last=last or stop) if saves else None
        if validation or folder:
            reporter.progress(run.step)
            reporter.report({"step": run.step} | (validation or {}), folder)
        close_step()
        if stop:
            return "stopped"
    return "finished"


def _update(run: Run, micro_batches: list[Batch]) -> None:
    """One optimizer step on the global batch."""
    weights = schedule.weights(run.config.loss, run.step)
    noise_key = seeding.key(run.config.train.seed, "noise", run.step)
    losses: list[Loss] = []
    update: Callable[[], Update] | None = None
    for batch in micro_batches:
        with span("forward tail"):
            eps_TBZ = seeding.normals(noise_key, batch.positions_B, len(batch.x_TBX), run.config.model.z_dim)
            terms = run.engine.forward(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
            loss = objective(terms, batch.mask_TB, weights, batch.num_sequences, batch.labels_B)
        with span("backward tail"):
            run.engine.backward(loss.total)
        losses.append(loss._replace(total=loss.total.detach()))  # without what led to it: it is kept for a while
        with span("optimizer"):
            update = run.engine.step(schedule.learning_rate(run.config.optim, run.step))
    assert update is not None, "the last micro-batch of a step closes it"
    updates.read_back(run)  # the update before this one: the device goes on with this one meanwhile
    run.unread = Unread(run.step, micro_batches, losses, update, updates.loss_scale(run))


@spanned("validation", whole=True)
def _validate(run: Run, reporter: Reporter) -> dict[str, float]:
    """The bound on the validation split, over all workers."""

    def told(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            reporter.progress(run.step)

    batches = evaluation_batches(
        run.store, run.config.data, "valid", rank=run.world.rank, world_size=run.world.size, device=run.world.device
    )
    result = evaluate(
        run.engine.forward,
        told(_in_lockstep(run, batches)),
        z_dim=run.config.model.z_dim,
        frame_samples=run.config.data.frame_samples,
        seed=run.config.train.seed,
        reduce=run.world.sum,
    )
    validation: dict[str, float] = {name: getattr(result, name.removeprefix("valid/")) for name in VALIDATION}
    _write(run, validation)
    return validation


def _in_lockstep(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give every worker as many batches as the busiest has; the added ones are empty and count nowhere.

    Under ZeRO 3 a forward pass gathers the weights from all workers, so all must make equally many.
    """
    if run.config.engine.zero_stage < 3:
        yield from batches
        return
    nothing = torch.zeros(1, dtype=torch.int64, device=run.world.device)
    frame = torch.zeros(1, 1, run.config.data.frame_samples, device=run.world.device)
    step = nothing[None] if run.store.kind.has_vocabulary else frame
    empty = Batch(step, step, nothing, nothing, nothing - 1, num_sequences=0, num_frames=0)
    while True:
        batch = next(batches, None)
        if not run.world.any(batch is not None):
            return
        yield empty if batch is None else batch


@spanned("checkpoint", whole=True)
def _save(run: Run, validation: dict[str, float] | None, *, is_last: bool = False) -> Path | None:
    """Write a checkpoint together; return its final folder on every worker.

    Where it is known before that a disk has no room, the run goes on without (None), so often as the config allows; but
    the last checkpoint of a run must be written, and is waited for until it is stored for good.
    """
    started = time.monotonic()
    try:
        partial = run.checkpointer.begin(run.step)
    except NoRoomError as error:
        run.unsaved_in_a_row += 1
        if is_last or run.unsaved_in_a_row >= run.config.checkpoint.max_failures:
            raise
        _write(run, {"checkpoint/skipped": str(error), "checkpoint/skipped_in_a_row": run.unsaved_in_a_row})
        return None
    run.unsaved_in_a_row = 0
    with run.checkpointer.room_explained(run.step):
        run.engine.save(partial / checkpoint.SHARDS)
        weights = run.engine.weights()
        meters = run.world.gather(run.meter.state())  # also the barrier after which all shards are written
        if run.world.rank == 0:
            assert weights is not None
            with atomic_io.replacing(partial / checkpoint.WEIGHTS) as fresh:
                save_file(weights, str(fresh))
            if run.store.kind.has_vocabulary:
                atomic_io.write(partial / checkpoint.WORDS, words_as_file(run.store.vocabulary()))
        manifest = CheckpointManifest(
            step=run.step,
            config=run.config,
            world_size=run.world.size,
            precision=run.engine.precision,
            recurrence=run.recurrence,
            optimizer=OPTIMIZER,
            x_dim=run.store.frame_size(run.config.data.frame_samples),
            data_fingerprint=run.store.fingerprint,
            data_kind=run.store.kind.name,
            sample_rate=run.store.sample_rate,
            vocabulary_sha256=vocabulary_sha256(run.store),
            normalisation={"mean": run.store.mean, "std": run.store.std},
            progress={"meters": meters, "skipped_in_a_row": run.skipped_in_a_row},
            validation=validation,
        )
        folder = run.checkpointer.commit(partial, manifest)
    if is_last:
        run.checkpointer.finish()
    _write(run, {"checkpoint/save_s": round(time.monotonic() - started, 3)} | run.checkpointer.timings())
    return folder


def _weights(run: Run) -> dict[str, float]:
    """The weights of the update that was just made."""
    now = schedule.weights(run.config.loss, run.step - 1)
    rate = schedule.learning_rate(run.config.optim, run.step - 1)
    return updates.loss_scale(run) | {
        "weights/kl": now.kl,
        "weights/alpha": now.alpha,
        "weights/beta": now.beta,
        "optim/learning_rate": rate,
    }


def _write(run: Run, line: dict[str, object] | dict[str, float]) -> None:
    if run.log:
        run.log.write(run.step, line)
