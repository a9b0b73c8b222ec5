"""Setting up a run on one worker: make all parts, and put them where the newest intact checkpoint left off."""

import math
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from zfdist import atomic_io, continuation, loop_choice, metrics, seeding, startup
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import weights
from zfdist.checkpoint.checkpointer import Checkpointer
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.checkpoint.remote_checkpointer import RemoteCheckpointer
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.config import Config
from zfdist.container import cpus
from zfdist.data.loader import Batch, TrainLoader
from zfdist.data.manifest import StoreError
from zfdist.data.store import Store
from zfdist.data.views import sequences_of
from zfdist.engine import OPTIMIZER, Engine, EngineError, Update
from zfdist.model import systems
from zfdist.model.kernels.mixed_precision import OPERANDS
from zfdist.model.networks.network import Network
from zfdist.model.objective import LABEL_SUMS, SUMS, Loss
from zfdist.model.recurrent.latent_chain import LatentChain
from zfdist.model.recurrent.recurrence import Recurrence
from zfdist.run_protocol import RESULT, Weights
from zfdist.world import World

_PER_THREAD = 10**9
"""Operations of a micro-batch that each thread should have: with fewer, two took longer than one on a busy node."""


class Unread(NamedTuple):
    """An update whose norm was not read back from the device yet."""

    step: int
    micro_batches: list[Batch]
    losses: list[Loss]
    update: Callable[[], Update]
    loss_scale: dict[str, float]
    """As it is after the update, under fp16."""


@dataclass(kw_only=True)
class Run:
    """The parts of a run on one worker, and its position."""

    config: Config
    folder: Path
    checkpointer: Checkpointer
    world: World
    store: Store
    loader: TrainLoader
    engine: Engine
    meter: metrics.Meter
    log: metrics.Log | None
    recurrence: str | None
    """What computes the loop over time, for checkpoints: a run that goes on takes the same."""
    step: int = 0
    skipped_in_a_row: int = 0
    unsaved_in_a_row: int = 0
    unread: Unread | None = None


def build(
    config: Config, folder: Path, world: World, start_from: Weights | None, copy: WorkingCopy | None = None
) -> Run:
    """Make all parts of a run; every worker must do this together. What is refused is refused before any file changes.

    Raises:
        CheckpointError: if what the folder holds cannot be resumed with this config or data.
        ConfigError: if the model does not go with the data.
        StorageError: if the run lives in a store that cannot be used.
    """
    checkpointer, shown = (
        (Checkpointer(folder, world, config.checkpoint), str(folder))
        if copy is None
        else (RemoteCheckpointer(copy, world, config.checkpoint), copy.shown)
    )
    store, manifest = _open_data(config), checkpointer.manifest()
    config = continuation.accepted(
        config, store, manifest,
        run=shown, device=world.device.type, workers=[world.size], start_from=start_from,
    )  # fmt: skip
    store = continuation.in_units(config, store, manifest, start_from)
    loader = TrainLoader(
        store,
        config.data,
        seed=config.train.seed,
        rank=world.rank,
        world_size=world.size,
        accumulation_steps=config.engine.accumulation_steps,
        device=world.device,
    )
    newest = checkpointer.newest(say=lambda line: print(line, flush=True))
    x_dim = store.frame_size(config.data.frame_samples)
    startup.ended("data")
    module = systems.build(config.model, x_dim, config.train.seed)
    if start_from is not None and newest is None:
        _load_weights(module, config, store, start_from)
    choice = _settle(module, config, store, manifest, world)
    engine = Engine(module, config.engine, config.optim, world)
    names = SUMS + LABEL_SUMS if config.model.label_classes else SUMS
    run = Run(
        config=config,
        folder=folder,
        checkpointer=checkpointer,
        world=world,
        store=store,
        loader=loader,
        engine=engine,
        meter=metrics.Meter(names, world.device),
        log=None,
        recurrence=choice and choice.name,
    )
    startup.ended("model and DeepSpeed")
    if newest is not None:
        _restore(run, newest)
    if world.rank == 0:
        print(*systems.description(module, config.loss), _implementations(module, engine), sep="\n", flush=True)
        (folder / RESULT).unlink(missing_ok=True)  # written again when this run has finished
        atomic_io.write(folder / checkpoint.CONFIG, config.to_json())
        run.log = metrics.Log(folder, run.step)
    return run


def _open_data(config: Config) -> Store:
    """Open the data; says on which machine they are missing or damaged, since others may have them."""
    try:
        return Store.open(config.data.root, config.data.verify, config.data.cache)
    except StoreError as error:
        raise type(error)(f"{error} (on {socket.gethostname()})") from None


def _settle(
    module: Network, config: Config, store: Store, manifest: CheckpointManifest | None, world: World
) -> loop_choice.Choice | None:
    """Decide on CPU threads and on what computes the loop over time; rank 0 tells how that was measured, if it was.

    Before the engine is made, which under ZeRO 3 leaves no sizes to be seen and on a GPU takes its memory.
    """
    sequences = sequences_of(store, config.data, "train", config.data.train_view)
    steps = sequences.num_frames / len(sequences)
    batch = config.data.global_batch / (world.size * config.engine.accumulation_steps)
    if not config.engine.threads_per_worker:
        parameters, available = systems.parameter_counts(module)["total"], min(torch.get_num_threads(), cpus())
        torch.set_num_threads(threads_worth_having(parameters, batch * steps, available))
    wanted = config.model.recurrence
    before = manifest.recurrence if manifest and manifest.config.model.recurrence == wanted else None
    asked = loop_choice.Asked(wanted, before, is_resumed=manifest is not None)
    choice = loop_choice.settle(
        module, asked, world, steps=math.ceil(steps), batch=math.ceil(batch),
        precision=config.engine.precision_on(world.device.type), onednn=config.engine.matmul == "auto",
    )  # fmt: skip
    if choice is not None and world.rank == 0:
        print("".join(f"{line}\n" for line in choice.told), end="", flush=True)
    startup.ended("choice of the loop")
    return choice


def threads_worth_having(weights: int, frames: float, available: int) -> int:
    """Return how many of the `available` CPU threads a micro-batch of so many frames has work for.

    Threads wait for each other some thousand times each, and for whoever takes a CPU from one of them.
    """
    return max(1, min(available, int(6 * weights * frames / _PER_THREAD)))


def _implementations(module: Network, engine: Engine) -> str:
    """Say what computes the loop over time and float32 products on this machine."""
    operand = OPERANDS[engine.precision]
    loops = [
        f"loop by {part.describe(operand)}" for part in module.modules() if isinstance(part, LatentChain | Recurrence)
    ]
    noise = [] if engine.device.type == "cpu" else [f"noise {seeding.describe(engine.device)}"]
    return ", ".join([*loops, *noise, f"float32 products {engine.products}, CPU threads {torch.get_num_threads()}"])


def _restore(run: Run, folder: Path) -> None:
    manifest = checkpoint.read_manifest(folder)
    if manifest.optimizer != OPTIMIZER and run.world.rank == 0:
        print(_other_optimizer(folder, manifest), flush=True)
    scratch = run.folder / "checkpoints" / ".universal"
    _remove(scratch, run)  # left by a crash in mid-conversion: its pieces must not mix with ours
    try:
        run.engine.load(
            folder / checkpoint.SHARDS,
            saved_world_size=manifest.world_size,
            saved_zero_stage=manifest.config.engine.zero_stage,
            scratch=scratch,
            converts=run.checkpointer.leads,
        )
    except EngineError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    _remove(scratch, run)
    run.step = manifest.step
    run.skipped_in_a_row = manifest.progress["skipped_in_a_row"]
    meters = manifest.progress["meters"]
    run.meter.restore(metrics.place_state(meters, run.world.rank, run.world.size))
    startup.ended("checkpoint")


def _other_optimizer(folder: Path, manifest: CheckpointManifest) -> str:
    before = manifest.optimizer or "AdamW with a weight decay of 0.01 (as all runs on a CPU were)"
    return f"{folder} was trained with {before}; from here on it is {OPTIMIZER}, without weight decay"


def _remove(scratch: Path, run: Run) -> None:
    """Remove a folder once no worker reads it any more."""
    run.world.barrier()
    if run.checkpointer.leads:
        shutil.rmtree(scratch, ignore_errors=True)


def _load_weights(module: torch.nn.Module, config: Config, store: Store, start_from: Weights) -> None:
    folder = continuation.weights_to_start_from(config, store, start_from)
    module.load_state_dict(weights.read(folder))
