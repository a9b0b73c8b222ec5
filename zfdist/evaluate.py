"""The bound over a split: sums and counts over all real frames, reduced once, then means over sequences.

Every real sequence weighs 1, padding nothing, and no mean of batch means is ever taken. The noise of a sequence
depends on the seed and its place in the split only, so neither batch size nor world size changes a result.
Needs neither Ray nor DeepSpeed, and reads no pickles.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from zfdist import checkpoint, seeding
from zfdist.checkpoint import CheckpointError, Manifest
from zfdist.config import Config, DataConfig
from zfdist.data.loader import Batch, evaluation_batches
from zfdist.data.store import Store
from zfdist.model import systems
from zfdist.model.objective import objective
from zfdist.model.systems import System
from zfdist.model.terms import Terms
from zfdist.schedule import EVALUATION


class EvaluationError(ValueError):
    """A model and a split that cannot be evaluated together; the message names both and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The ELBO of a set of sequences (KL weight 1), in nats; means over sequences unless the name says otherwise."""

    sequences: int
    frames: int
    """Scored frames."""
    samples: int
    """Scored samples: frames times samples of a frame."""
    elbo_nats: float
    log_px_nats: float
    """Reconstruction part of the ELBO."""
    kl_nats: float
    elbo_stderr_nats: float
    """Standard error of the mean over sequences; NaN for a single one."""
    kl_nats_per_frame: float
    nats_per_sample: float
    """ELBO per scored sample; a log-density in normalised units, so it may be positive."""
    bits_per_sample: float
    """The same in bits."""
    seed: int
    """Root of the posterior's noise."""


@dataclass(frozen=True, kw_only=True)
class Result(Bound):
    """A bound and what must be known to compare it with another."""

    split: str
    view: str
    """What a sequence is: segments or utterances."""
    mean: float
    """Mean of the training samples that the model's units subtract, in stored integer units."""
    std: float
    """Their standard deviation, one normalised unit, in stored integer units."""
    sigma_floor: float
    """Smallest standard deviation of the output density, in normalised units."""
    step: int
    """Optimizer steps of the evaluated weights."""


class Loaded(NamedTuple):
    """A trained network and what its checkpoint says about it."""

    model: System
    config: Config
    manifest: Manifest


def evaluate(
    model: Callable[..., Terms],
    batches: Iterable[Batch],
    *,
    z_dim: int,
    frame_samples: int,
    seed: int,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Bound:
    """Return the bound over all sequences of `batches`, one posterior sample each.

    `model` is anything called like `ZForcing.forward`. `reduce` adds a float64 tensor up over workers; it is called
    once, by every worker, also by one that got no batch.

    Raises:
        EvaluationError: if there are no sequences on any worker.
    """
    noise_key = seeding.key(seed, "evaluate")
    sums = torch.zeros(len(_Sums._fields), dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            eps_TBZ = seeding.normals(noise_key, batch.positions_B, batch.x_TBX.shape[0], z_dim)
            terms = model(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
            sums = sums.to(batch.x_TBX.device) + torch.stack(_sums(terms, batch))
    return _bound(_Sums(*reduce(sums).tolist()), frame_samples, seed)


def evaluate_split(
    loaded: Loaded, store: Store, split: str, *, data: DataConfig, seed: int, device: torch.device
) -> Result:
    """Return the bound of a loaded model over one split of a store, in one process.

    Raises:
        EvaluationError: if the store has no such split, or has other frames or units than the model was trained with.
    """
    manifest = loaded.manifest
    mean, std = manifest.normalisation["mean"], manifest.normalisation["std"]
    if split not in store.splits:
        raise EvaluationError(f"split {split!r}: the data has {', '.join(store.splits)}")
    if (store.mean, store.std) != (mean, std):
        raise EvaluationError(
            f"the model was trained on samples with mean {mean:.6g} and std {std:.6g}, this data has {store.mean:.6g} "
            f"and {store.std:.6g}: its units differ; use the data that it was trained on"
        )
    if data.frame_samples != loaded.model.x_dim:
        raise EvaluationError(f"data.frame_samples = {data.frame_samples}: the model has {loaded.model.x_dim}")
    bound = evaluate(
        loaded.model.to(device),
        evaluation_batches(store, data, split, rank=0, world_size=1, device=device),
        z_dim=loaded.config.model.z_dim,
        frame_samples=data.frame_samples,
        seed=seed,
    )
    return Result(
        **vars(bound),
        split=split,
        view=data.eval_view,
        mean=mean,
        std=std,
        sigma_floor=loaded.config.model.sigma_floor,
        step=manifest.step,
    )


def load_model(path: Path) -> Loaded:
    """Return the network of a checkpoint, an export, or a run (its best checkpoint, else its newest), on the CPU.

    Raises:
        CheckpointError: if there is none, it is damaged, or its weights are not those of its config.
    """
    folder = checkpoint.resolve(path)
    manifest = checkpoint.verify(folder, only=checkpoint.WEIGHTS)
    model = systems.build(manifest.config.model, manifest.config.data.frame_samples, seed=0)
    weights = load_file(folder / checkpoint.WEIGHTS)
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{folder / checkpoint.WEIGHTS}: tensor {name} is missing, unknown or of another shape than its "
                "config says: the checkpoint was written by another version"
            )
    model.load_state_dict(weights)
    return Loaded(model.eval(), manifest.config, manifest)


class _Sums(NamedTuple):
    sequences: float
    frames: float
    elbo: float
    elbo_squared: float
    log_px: float
    kl: float


def _sums(terms: Terms, batch: Batch) -> tuple[Tensor, ...]:
    loss = objective(terms, batch.mask_TB, EVALUATION, max(batch.num_sequences, 1))
    real_B = batch.lengths_B > 0
    return (
        real_B.sum().double(),
        batch.lengths_B.sum().double(),
        loss.sums["elbo_nats"],
        loss.elbo_B.square().sum(),
        loss.sums["log_px_nats"],
        loss.sums["kl_nats"],
    )


def _bound(sums: _Sums, frame_samples: int, seed: int) -> Bound:
    n, frames = int(sums.sequences), int(sums.frames)
    if n == 0:
        raise EvaluationError("no sequences to evaluate: every recording of the split is shorter than two frames")
    samples = frames * frame_samples
    mean = sums.elbo / n
    variance = max(sums.elbo_squared / n - mean * mean, 0.0) * n / (n - 1) if n > 1 else math.nan
    return Bound(
        sequences=n,
        frames=frames,
        samples=samples,
        elbo_nats=mean,
        log_px_nats=sums.log_px / n,
        kl_nats=sums.kl / n,
        elbo_stderr_nats=math.sqrt(variance / n),
        kl_nats_per_frame=sums.kl / frames,
        nats_per_sample=sums.elbo / samples,
        bits_per_sample=sums.elbo / samples / math.log(2.0),
        seed=seed,
    )
