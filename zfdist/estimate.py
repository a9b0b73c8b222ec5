"""What a run will take, before it runs: memory by ZeRO stage, time, storage and money. Arithmetic; needs no cluster.

All weights are kept in float32 (bf16 is autocast over them), so a parameter is 4 bytes, and Adam's two moments are 8.
From stage 1 on DeepSpeed shards the optimizer together with a float32 copy of the weights that it updates.
Ring all-reduce of n bytes over W workers moves 2 (W - 1) / W n bytes through each (Patarasuk and Yuan, 2009).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from zfdist.config import CheckpointConfig, Config, ModelConfig, TrainConfig
from zfdist.model import systems
from zfdist.model.networks.network import Network
from zfdist.model.recurrent.recurrence import UNDECIDED, Recurrence

STAGES = (0, 1, 2, 3)
_WEIGHT = 4
_MOMENTS = 8
_FRAMES, _SEQUENCES = 8, 4  # of the passes that are measured: enough that memory being dealt in pages hardly shows

_PASSES, _MOST_S = 5, 3.0  # of those that are timed


class Memory(NamedTuple):
    """Bytes on one worker's device."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's moments, and from stage 1 on the copy of the weights that it updates."""
    activations: float
    """What the backward pass of one micro-batch reads again; kernels' working space comes on top."""

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self)


class Activations(NamedTuple):
    """Bytes that a forward pass keeps, as a function of its shape: linear in sequences and in their steps."""

    fixed: float
    per_sequence: float
    per_frame: float

    def of(self, frames: int, sequences: int) -> float:
        """Return the bytes for a batch of `sequences` of so many `frames` each."""
        return self.fixed + sequences * (self.per_sequence + frames * self.per_frame)


class Time(NamedTuple):
    """Seconds of an optimizer step on W workers."""

    best_s: float
    """If a worker's share of the batch takes its part of the time."""
    worst_s: float
    """If a step takes as long however few sequences it has, as the loop over time on a GPU nearly does."""
    exchange_s: float
    """Of both, spent on the gradients' way between machines."""


def parameters(config: ModelConfig, x_dim: int) -> int:
    """Return the number of parameters of a network of these sizes, without making it."""
    with torch.device("meta"):
        return systems.parameter_counts(systems.build(config, x_dim, seed=0))["total"]


def memory(count: int, stage: int, workers: int, activations: float = 0.0) -> Memory:
    """Return what `count` parameters take on each of `workers` devices under a ZeRO stage."""
    share = count / workers
    return Memory(
        weights=_WEIGHT * (share if stage == 3 else count),
        gradients=_WEIGHT * (share if stage >= 2 else count),
        optimizer=(_MOMENTS + _WEIGHT) * share if stage else _MOMENTS * count,
        activations=activations,
    )


def activations(config: ModelConfig, x_dim: int) -> Activations:
    """Return what the network keeps for its backward pass: three small passes are run and their tensors counted."""
    model = as_on_a_gpu(systems.build(config, x_dim, seed=0))
    small = kept_bytes(model, _FRAMES, _SEQUENCES)
    longer = kept_bytes(model, 2 * _FRAMES, _SEQUENCES)
    wider = kept_bytes(model, _FRAMES, 2 * _SEQUENCES)
    per_frame = (longer - small) / (_FRAMES * _SEQUENCES)
    per_sequence = (wider - small) / _SEQUENCES - _FRAMES * per_frame
    return Activations(small - _SEQUENCES * (per_sequence + _FRAMES * per_frame), per_sequence, per_frame)


def as_on_a_gpu(model: Network) -> Network:
    """Let the network's loop over time be the one that a GPU takes, wherever it is asked; others keep about as much."""
    for part in model.modules():
        if isinstance(part, Recurrence) and part.implementation in UNDECIDED:
            part.implementation = "bptt"
    return model


def kept_bytes(model: Network, frames: int, sequences: int) -> int:
    """Return the bytes that a forward pass of this shape keeps for the backward pass, the parameters not counted."""
    x = model.blank(frames + 1, sequences)
    eps = torch.zeros(frames, sequences, model.config.z_dim)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with _kept() as storages:
        terms = model(x[:-1], x[1:], torch.full((sequences,), frames), eps)
        found = {pointer: size for pointer, size in storages if pointer not in own}
        del terms  # until here nothing that was kept is freed, so that no two have the same address
    return sum(found.values())


def pass_s(config: ModelConfig, x_dim: int, frames: int, sequences: int) -> float:
    """Return the seconds of a forward and backward pass of this shape on this machine's CPU: the fastest of a few."""
    model = systems.build(config, x_dim, seed=0)
    _pass(model, _FRAMES, sequences)  # which also compiles what is compiled at first use
    taken_s: list[float] = []
    while len(taken_s) < _PASSES and sum(taken_s) < _MOST_S:
        started_s = time.perf_counter()
        _pass(model, frames, sequences)
        taken_s.append(time.perf_counter() - started_s)
    return min(taken_s)


def _pass(model: Network, frames: int, sequences: int) -> None:
    x, eps = model.blank(frames + 1, sequences), torch.zeros(frames, sequences, model.config.z_dim)
    terms = model(x[:-1], x[1:], torch.full((sequences,), frames), eps)
    (terms.log_px_TB + terms.kl_TB + terms.log_pb_TB + terms.log_px_backward_TB).sum().backward()


def checkpoint_bytes(count: int, stage: int) -> float:
    """Return what a checkpoint takes in storage: the weights for evaluation, and DeepSpeed's weights and optimizer."""
    again = 0 if stage == 3 else _WEIGHT  # stage 3 has its weights in the optimizer's copy alone
    return count * (_WEIGHT + again + _MOMENTS + (_WEIGHT if stage else 0))


def checkpoints_kept(config: CheckpointConfig, train: TrainConfig) -> int:
    """Return how many checkpoints are there at the end of a run, at most."""
    written, every = checkpoints_written(config, train), config.keep_every_steps
    for_good = sum(step % every == 0 for step in written) if every else 0
    return min(len(written), config.keep_last + config.keep_best + for_good)


def checkpoints_written(config: CheckpointConfig, train: TrainConfig) -> set[int]:
    """Return the steps at which a run writes checkpoints, at most: if each validation is the best so far."""
    validations = range(train.validate_every, train.steps, train.validate_every) if config.keep_best else ()
    return {*range(config.every_steps, train.steps, config.every_steps), *validations, train.steps}


def exchange_s(count: int, workers: int, gbit_per_s: float) -> float:
    """Return the seconds that the gradient of `count` parameters is on its way in each step."""
    moved = 2 * (workers - 1) / workers * _WEIGHT * count
    return moved / (gbit_per_s * 1e9 / 8)


def step_time(measured_s: float, measured_workers: int, workers: int, exchange: float) -> Time:
    """Return what a step takes on `workers`, given what the same global batch took on `measured_workers`."""
    share_s = measured_s * measured_workers / workers
    return Time(share_s + exchange, max(measured_s, share_s) + exchange, exchange)


def money(seconds: float, workers: int, price_per_hour: float, head_price_per_hour: float = 0.0) -> float:
    """Return what so many workers and a head cost, in the currency of the prices."""
    return seconds / 3600 * (workers * price_per_hour + head_price_per_hour)


def workers_that_pay(compute_s: float, count: int, gbit_per_s: float, efficiency: float = 0.5) -> int:
    """Return up to how many workers each still does at least `efficiency` of its work.

    A step of c seconds on one worker takes c / W + x(W) on W, with x(W) = 2 (W - 1) / W g / b to exchange a gradient of
    g bytes at b bytes/s. So the efficiency is c / (c + 2 (W - 1) g / b), which falls with W.
    """
    once_s = exchange_s(count, 2, gbit_per_s)  # g / b
    return math.floor(1 + (1 / efficiency - 1) * compute_s / (2 * once_s))


def frames_of(config: Config, frames: int | None) -> int | None:
    """Return the steps of a training sequence: as told, or of a segment; None if only the data know."""
    if frames is not None:
        return frames
    return config.data.segment_frames if config.data.train_view == "segments" else None


@contextmanager
def _kept() -> Iterator[list[tuple[int, int]]]:
    """Give a list in which address and size of every tensor's memory appears that autograd keeps in the block."""
    found: list[tuple[int, int]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found.append((storage.data_ptr(), storage.nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
