"""What bounds are made of: the scores of single sequences, the same however they are dealt to batches and workers.

Two bounds on log p(x) of a sequence, with KL weight 1 and no auxiliary cost:

    ELBO     sum_t  log p(x_{t+1} | h_t) - KL(q_t || p_t)                                        one posterior sample
    IWAE-K   log 1/K sum_k w_k,  log w_k = sum_t log p(x_{t+1} | h_t) + log p(z_t) - log q(z_t)  K whole trajectories

The second is of Burda et al., "Importance Weighted Autoencoders"; with K = 1 it is the ELBO with a sampled KL.
Noise depends on the seed, a sequence's place in the split and the number of the sample only.

Shapes: T time, B batch, K samples, N = K * B rows or sequences, C columns, Z latent.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zfdist import seeding
from zfdist.data.loader import Batch
from zfdist.model.terms import Terms

Model = Callable[..., Terms]
"""Anything called like the `forward` of a system."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How the importance-weighted bound is made."""

    samples: int = 25
    """K, trajectories of each sequence; at least 1."""
    chunk: int = 5
    """Trajectories at a time: memory grows with this, not with K; at least 1. Changes nothing but rounding."""


COLUMNS = ("id", "frames", "elbo_nats", "log_px_nats", "kl_nats", "iwae_nats", "is_labelled", "is_correct")
"""What `score` says of a sequence: its place in the split, its scored frames, its bounds, and of a model with a label
head whether its label is known, and whether the likeliest label is right."""


class Sums(NamedTuple):
    """Sums over real sequences, in nats, and counts."""

    sequences: float
    frames: float
    elbo: float
    log_px: float
    kl: float


def score(
    model: Model, batches: Iterable[Batch], *, z_dim: int, seeds: Sequence[int], importance: Importance | None = None
) -> Tensor:
    """Return the `COLUMNS` of all sequences of `batches` for each seed: float64 [len(seeds), sequences, COLUMNS].

    Each batch is read once; sequences come in its order, dummy rows among them with 0 frames. Without `importance` the
    bound of IWAE is 0.
    """
    with torch.no_grad():
        rows = [torch.stack([_scored(model, batch, z_dim, seed, importance) for seed in seeds]) for batch in batches]
    return torch.cat(rows or [torch.empty(len(seeds), 0, len(COLUMNS), dtype=torch.float64)], dim=1)


def sums_of(scores_NC: Tensor) -> Tensor:
    """Return the `Sums` of what `score` gave for one seed, [sequences, COLUMNS]: float64 [len(Sums)]."""
    _, frames_N, *bounds = scores_NC.unbind(1)
    return torch.stack([(frames_N > 0).sum().double(), *(column.sum() for column in (frames_N, *bounds[:3]))])


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


def _scored(model: Model, batch: Batch, z_dim: int, seed: int, importance: Importance | None) -> Tensor:
    eps_TBZ = seeding.normals(seeding.key(seed, "evaluate"), batch.positions_B, batch.x_TBX.shape[0], z_dim)
    terms = model(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
    px_B, kl_B = (
        torch.where(batch.mask_TB, term_TB, 0.0).double().sum(0) for term_TB in (terms.log_px_TB, terms.kl_TB)
    )
    iwae_B = torch.zeros_like(px_B)
    if importance is not None:
        iwae_B = importance_weighted(model, batch, z_dim=z_dim, seed=seed, importance=importance)
    columns = (batch.ids_B, batch.lengths_B, px_B - kl_B, px_B, kl_B, iwae_B, *_told_apart(terms, batch))
    return torch.stack([column.double() for column in columns], dim=1)


def _told_apart(terms: Terms, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return of each row whether its label is known, and whether the label head finds it."""
    none_B = torch.zeros_like(batch.lengths_B, dtype=torch.bool)
    if terms.label_logits_BC is None or batch.labels_B is None:
        return none_B, none_B
    is_known_B = (batch.labels_B >= 0) & (batch.lengths_B > 0)
    return is_known_B, is_known_B & (terms.label_logits_BC.argmax(-1) == batch.labels_B)
