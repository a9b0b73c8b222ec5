"""What bounds are made of: sums and counts over real sequences, which add up over batches, workers and machines.

Two bounds on log p(x) of a sequence, with KL weight 1 and no auxiliary cost:

    ELBO     sum_t  log p(x_{t+1} | h_t) - KL(q_t || p_t)                                        one posterior sample
    IWAE-K   log 1/K sum_k w_k,  log w_k = sum_t log p(x_{t+1} | h_t) + log p(z_t) - log q(z_t)  K whole trajectories

The second is of Burda et al., "Importance Weighted Autoencoders"; with K = 1 it is the ELBO with a sampled KL.
Noise depends on the seed, a sequence's place in the split and the number of the sample only.

Shapes: T time, B batch, K samples, N = K * B rows, Z latent.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zfdist import seeding
from zfdist.data.loader import Batch
from zfdist.model.objective import objective
from zfdist.model.terms import Terms
from zfdist.schedule import EVALUATION

Model = Callable[..., Terms]
"""Anything called like the `forward` of a system."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How the importance-weighted bound is made."""

    samples: int = 25
    """K, trajectories of each sequence; at least 1."""
    chunk: int = 5
    """Trajectories at a time: memory grows with this, not with K; at least 1. Changes nothing but rounding."""


class Sums(NamedTuple):
    """Sums over real sequences, in nats, and counts."""

    sequences: float
    frames: float
    elbo: float
    elbo_squared: float
    elbo_frames: float
    """Of each sequence's ELBO times its scored frames; with the next for the error of a mean over frames."""
    frames_squared: float
    log_px: float
    kl: float
    iwae: float
    iwae_squared: float
    labelled: float
    """Sequences whose label is known, if the model has a label head."""
    correct: float
    """Of these, the ones whose likeliest label is right."""


def add_up(
    model: Model, batches: Iterable[Batch], *, z_dim: int, seeds: Sequence[int], importance: Importance | None = None
) -> Tensor:
    """Return the `Sums` over all sequences of `batches` for each seed: float64 [len(seeds), len(Sums)].

    Each batch is read once. Without `importance` the sums of IWAE are 0.
    """
    total: Tensor | None = None
    with torch.no_grad():
        for batch in batches:
            rows = torch.stack([torch.stack(_sums(model, batch, z_dim, seed, importance)) for seed in seeds])
            total = rows if total is None else total + rows
    return torch.zeros(len(seeds), len(Sums._fields), dtype=torch.float64) if total is None else total


def importance_weighted(model: Model, batch: Batch, *, z_dim: int, seed: int, importance: Importance) -> Tensor:
    """Return the importance-weighted bound of each row, in nats: float64 [B]; 0 for a row without real frames."""
    total_B = torch.full(batch.lengths_B.shape, -math.inf, dtype=torch.float64, device=batch.lengths_B.device)
    with torch.no_grad():
        for first in range(0, importance.samples, importance.chunk):
            samples = range(first, min(first + importance.chunk, importance.samples))
            log_weights_KB = _log_weights(model, batch, z_dim, [seeding.key(seed, "iwae", k) for k in samples])
            total_B = torch.logaddexp(total_B, torch.logsumexp(log_weights_KB, dim=0))
    return total_B - math.log(importance.samples)


def _log_weights(model: Model, batch: Batch, z_dim: int, keys: Sequence[seeding.Key]) -> Tensor:
    """Return log w of one trajectory for each key and row: float64 [K, B]."""
    steps, copies = batch.x_TBX.shape[0], len(keys)
    eps_TNZ = torch.cat([seeding.normals(key, batch.positions_B, steps, z_dim) for key in keys], dim=1)
    terms = model(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TNZ)
    log_weights_TN = terms.log_px_TB.double() + terms.log_ratio_TB.double()
    return torch.where(batch.mask_TB.repeat(1, copies), log_weights_TN, 0.0).sum(0).view(copies, -1)


def _sums(model: Model, batch: Batch, z_dim: int, seed: int, importance: Importance | None) -> tuple[Tensor, ...]:
    eps_TBZ = seeding.normals(seeding.key(seed, "evaluate"), batch.positions_B, batch.x_TBX.shape[0], z_dim)
    terms = model(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
    loss = objective(terms, batch.mask_TB, EVALUATION, max(batch.num_sequences, 1))
    iwae_B = torch.zeros_like(loss.elbo_B)
    if importance is not None:
        iwae_B = importance_weighted(model, batch, z_dim=z_dim, seed=seed, importance=importance)
    return (
        (batch.lengths_B > 0).sum().double(),
        batch.lengths_B.sum().double(),
        loss.sums["elbo_nats"],
        loss.elbo_B.square().sum(),
        (loss.elbo_B * batch.lengths_B).sum(),
        batch.lengths_B.double().square().sum(),
        loss.sums["log_px_nats"],
        loss.sums["kl_nats"],
        iwae_B.sum(),
        iwae_B.square().sum(),
        *_told_apart(terms, batch),
    )


def _told_apart(terms: Terms, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return how many labels are known, and how many of them the label head finds."""
    none = torch.zeros((), dtype=torch.float64, device=batch.lengths_B.device)
    if terms.label_logits_BC is None or batch.labels_B is None:
        return none, none
    is_known_B = (batch.labels_B >= 0) & (batch.lengths_B > 0)
    is_right_B = is_known_B & (terms.label_logits_BC.argmax(-1) == batch.labels_B)
    return is_known_B.sum().double(), is_right_B.sum().double()
