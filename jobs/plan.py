"""What a run will take: `zfdist cluster plan RECIPE [--workers W] [--gbit 10] [--from-run runs/x] ...`."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import command
from zfdist.config import Config
from zfdist.data.kinds import with_density
from zfdist.errors import ZfdistError

if TYPE_CHECKING:
    from zfdist.estimate import Memory

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print what a run of a recipe will take: memory, time, storage and money."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    workers: int = 1
    """Processes that share each global batch."""
    memory_gib: float | None = None
    """Of each worker's device; says which ZeRO stages fit."""
    frames: int | None = None
    """Steps of the longest training sequence; None for data.segment_frames."""
    x_dim: int | None = None
    """Values of a frame, or words of the vocabulary; None for what the data or data.frame_samples say."""
    gbit: float = 10.0
    """Network between workers, Gbit/s."""
    from_run: Path | None = None
    """A run of the same model and batch, whose measured step the time is from."""
    step_s: float | None = None
    """Seconds of a step on one worker, instead of --from-run."""
    price: float | None = None
    """Of a worker, per hour."""
    head_price: float = 0.0
    """Of the head, per hour."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = command.parse(Arguments, "cluster plan", argv, lambda config: Arguments(config=config))
    command.refuse_below(arguments, workers=1, frames=1, x_dim=1, price=0, head_price=0)
    for name in ("memory_gib", "gbit", "step_s"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            command.refuse(f"{command.flag(name)} {value}: must be more than 0")
    count, lines = sizes(arguments)
    print("\n".join([*lines, *_time_lines(arguments, count)]))


def sizes(arguments: Arguments) -> tuple[int, list[str]]:
    """Return the number of parameters, and lines for people: a worker's share, memory by ZeRO stage, storage."""
    from zfdist import estimate
    from zfdist.model import systems

    config, workers = arguments.config, arguments.workers
    x_dim, frames = _x_dim(arguments), estimate.frames_of(config, arguments.frames)
    if frames is None:
        command.refuse("data.train_view = utterances: pass --frames, the steps of the longest")
    model = systems.sized(config.model, config.loss, x_dim)
    count = estimate.parameters(model, x_dim)
    sequences = math.ceil(config.data.global_batch / workers / config.engine.accumulation_steps)
    kept = estimate.activations(model, x_dim).of(frames, sequences)
    idle = systems.idle_heads(model, config.loss)
    unused = f" (with {' and '.join(idle)}, which have no weight in the objective)" if idle else ""
    size = estimate.checkpoint_bytes(count, config.engine.zero_stage)
    number = estimate.checkpoints_kept(config.checkpoint, config.train)
    written = len(estimate.checkpoints_written(config.checkpoint, config.train))
    chosen = config.engine.zero_stage
    stages = [
        _memory_line(stage, estimate.memory(count, stage, workers, kept), arguments, stage == chosen)
        for stage in estimate.STAGES
    ]
    return count, [
        f"{count:,} parameters{unused}; gradient {count * 4 / 2**20:,.1f} MiB",
        f"{workers} worker{'s' * (workers > 1)}, each {sequences} sequences of {frames} steps at a time",
        "",
        "GiB per worker   weights  gradients  optimizer  activations    total",
        *stages,
        "",
        f"checkpoints: {size / _GIB:.2f} GiB each, at most {written:,} written, at most {number} kept: "
        f"{number * size / _GIB:.2f} GiB of storage",
    ]


def of_run(config: Config, recipe: Config, workers: int, has_gpu: bool) -> Iterator[str]:
    """Yield what a run on the data that are here will be and take, for people: config, network, shares, memory, time.

    Args:
        config: of the run.
        recipe: what the config is compared with.
        workers: how many share each global batch.
        has_gpu: whether each has a GPU, whose time nothing here tells.
    """
    import torch

    from zfdist.data.store import Store
    from zfdist.data.views import sequences_of
    from zfdist.model import systems

    store = Store.open(config.data.root, verify="size", cache=config.data.cache)
    frames_N = sequences_of(store, config.data, "train", config.data.train_view).frames
    x_dim = store.frame_size(config.data.frame_samples)
    config = dataclasses.replace(config, model=systems.sized(config.model, config.loss, x_dim))
    width = max(map(len, config.flat()))
    for name, value in config.flat().items():
        usual = recipe.flat()[name]
        yield f"{name:<{width}}  {value}" + (f"  (recipe: {usual})" if value != usual else "")
    with torch.device("meta"):  # shapes without numbers
        network = systems.build(config.model, x_dim, config.train.seed)
    yield from ("", *systems.description(network, config.loss), "")
    yield f"{len(frames_N):,} training sequences in {config.data.root}, of {frames_N.mean():,.0f} steps on average"
    yield from sizes(Arguments(config=config, workers=workers, frames=int(frames_N.max()), x_dim=x_dim))[1]
    if has_gpu:
        yield "time: only a run tells that of a GPU; `zfdist cluster plan --from-run` reads it there"
    else:
        yield _tried(config, x_dim, max(1, round(frames_N.mean())), workers)


def _tried(config: Config, x_dim: int, frames: int, workers: int) -> str:
    """Try one worker's share of an update on its part of this machine's CPUs; say what all updates will take."""
    import torch

    from zfdist import estimate
    from zfdist.build import threads_worth_having
    from zfdist.container import cpus

    passes, steps = config.engine.accumulation_steps, config.train.steps
    sequences = math.ceil(config.data.global_batch / workers / passes)
    parameters = estimate.parameters(config.model, x_dim)
    threads = threads_worth_having(parameters, frames * sequences, max(1, cpus() // workers))
    torch.set_num_threads(threads)
    step_s = passes * estimate.pass_s(config.model, x_dim, frames, sequences)
    return (
        f"time: {steps:,} updates of some {step_s:.3g} s are {command.duration(steps * step_s)}, as tried here on "
        f"{threads} CPU thread{'s' * (threads > 1)};\n"
        "  validation, checkpoints and the exchange between workers come on top"
    )


def _memory_line(stage: int, need: "Memory", arguments: Arguments, chosen: bool) -> str:
    cells = "".join(
        f"{value / _GIB:>{width}.3f}" for value, width in zip((*need, need.total), (10, 11, 11, 13, 9), strict=True)
    )
    fits = ""
    if arguments.memory_gib is not None:
        fits = "  fits" if need.total / _GIB <= arguments.memory_gib else f"  more than {arguments.memory_gib:g}"
    return f"{'->' if chosen else '  '} ZeRO {stage}       {cells}{fits}"


def _time_lines(arguments: Arguments, count: int) -> Iterator[str]:
    from zfdist import estimate

    measured = _measured(arguments)
    if measured is None:
        yield "time and money: pass --from-run runs/NAME of the same model and batch, or --step-s"
        return
    steps, workers = arguments.config.train.steps, arguments.workers
    exchange_s = estimate.exchange_s(count, workers, arguments.gbit)
    time = estimate.step_time(*measured, workers, exchange_s)
    yield (
        f"a step: {time.best_s:.3f} s if a smaller share is as much faster, {time.worst_s:.3f} s if not; "
        f"{exchange_s:.4f} s of it for gradients at {arguments.gbit:g} Gbit/s"
    )
    yield (
        f"{steps:,} steps: {command.duration(steps * time.best_s)} to {command.duration(steps * time.worst_s)} "
        "(validation and checkpoints not counted)"
    )
    most = estimate.workers_that_pay(measured[0] * measured[1], count, arguments.gbit)
    yield f"up to {most} workers each still does half of its work, at best; beyond that run more trials instead"
    if arguments.price is not None:
        low, high = (
            estimate.money(steps * s, workers, arguments.price, arguments.head_price)
            for s in (time.best_s, time.worst_s)
        )
        yield f"money: {low:,.2f} to {high:,.2f} at {arguments.price:g} an hour for each worker"


def _measured(arguments: Arguments) -> tuple[float, int] | None:
    """Return seconds of a step and the number of workers that took it."""
    if arguments.step_s is not None:
        return arguments.step_s, 1
    if arguments.from_run is None:
        return None
    from zfdist import run_protocol
    from zfdist.checkpoint import folder as checkpoint

    if not (arguments.from_run / run_protocol.METRICS).is_file():
        raise ZfdistError(f"--from-run {arguments.from_run}: holds no {run_protocol.METRICS}, so this is not a run")
    measured = (record.get("speed/step_s") for record in run_protocol.records(arguments.from_run))
    seconds = [value for value in measured if value is not None]
    saved = checkpoint.steps(arguments.from_run)
    if not seconds or not saved:
        raise ZfdistError(f"--from-run {arguments.from_run}: was too short, it has no speed or no checkpoint yet")
    manifest = checkpoint.read_manifest(checkpoint.folder_of(arguments.from_run, saved[-1]))
    then, now = manifest.config.flat(), arguments.config.flat()
    for name in ("model.system", "model.hidden", "model.z_dim", "data.global_batch", "data.segment_frames"):
        if then[name] != now[name]:
            raise ZfdistError(f"--from-run {arguments.from_run}: was run with {name} = {then[name]}, not {now[name]}")
    return statistics.median(seconds), manifest.world_size


def _x_dim(arguments: Arguments) -> int:
    from zfdist.data.store import Store

    config = arguments.config
    if arguments.x_dim is not None:
        return arguments.x_dim
    if (Path(config.data.root) / "manifest.json").is_file():
        return Store.open(config.data.root, verify="size", cache=config.data.cache).frame_size(
            config.data.frame_samples
        )
    if any(kind.has_vocabulary for kind in with_density(config.model.density)):
        command.refuse(f"{config.data.root} is not there, and only the data know the vocabulary: pass --x-dim WORDS")
    return config.data.frame_samples
