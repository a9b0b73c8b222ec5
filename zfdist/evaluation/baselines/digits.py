"""Binary images pixel by pixel: a product of Bernoullis, and a mixture of such products, fitted by EM.

    product    p(x) = prod_d m_d^x_d (1 - m_d)^(1 - x_d)
    mixture    p(x) = sum_k w_k prod_d m_kd^x_d (1 - m_kd)^(1 - x_d)

Shapes: N images, D pixels, K components.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zfdist.data.store import Store

COMPONENTS = 50
_STEPS = 40
_LEAST_GAIN_NATS = 0.02
"""EM ends where a step gains less than this per image of the validation split."""
_PSEUDO = 0.1  # images of either value that every pixel of a component is taken to have seen
_ROWS = 1 << 13


def scores(store: Store, split: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield name and log-likelihood of each image of a split by each model, fitted to the training split."""
    train_ND, test_ND = _read(store, "train"), _read(store, split)
    means_D = _means(train_ND.sum(0, dtype=np.float64), float(len(train_ND)))
    yield "product-of-bernoullis", _log_joint(test_ND, np.zeros(1), means_D[None])[:, 0]
    valid_ND = _read(store, "valid") if "valid" in store.splits else train_ND
    log_weights_K, means_KD = mixture(train_ND, valid_ND, min(COMPONENTS, len(train_ND)))
    yield "mixture-of-bernoullis", _log_sum(_log_joint(test_ND, log_weights_K, means_KD))


def mixture(
    train_ND: NDArray[np.uint8], valid_ND: NDArray[np.uint8], components: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log-weights [K] and means [K, D] that EM comes to from images drawn with `seed`."""
    rng = np.random.default_rng(seed)
    means_KD = 0.25 + 0.5 * train_ND[rng.choice(len(train_ND), components, replace=False)].astype(np.float64)
    log_weights_K, reached = np.full(components, -np.log(components)), -np.inf
    for _ in range(_STEPS):
        counts_K, sums_KD = np.zeros(components), np.zeros(means_KD.shape)
        for first in range(0, len(train_ND), _ROWS):
            part_ND = train_ND[first : first + _ROWS]
            joint_NK = _log_joint(part_ND, log_weights_K, means_KD)
            shares_NK = np.exp(joint_NK - _log_sum(joint_NK)[:, None])
            counts_K += shares_NK.sum(0)
            sums_KD += shares_NK.T.astype(np.float32) @ part_ND.astype(np.float32)
        log_weights_K = np.log((counts_K + _PSEUDO) / (counts_K + _PSEUDO).sum())
        means_KD = _means(sums_KD, counts_K[:, None])
        now = float(_log_sum(_log_joint(valid_ND, log_weights_K, means_KD)).mean())
        if now - reached < _LEAST_GAIN_NATS:
            break
        reached = now
    return log_weights_K, means_KD


def _means(sums: NDArray[np.float64], counts: NDArray[np.float64] | float) -> NDArray[np.float64]:
    means: NDArray[np.float64] = (sums + _PSEUDO) / (counts + 2 * _PSEUDO)
    return means


def _log_joint(
    x_ND: NDArray[np.uint8], log_weights_K: NDArray[np.float64], means_KD: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log w_k p_k(x): [N, K]."""
    logits_DK = (np.log(means_KD) - np.log1p(-means_KD)).T.astype(np.float32)
    parts = [x_ND[first : first + _ROWS].astype(np.float32) @ logits_DK for first in range(0, len(x_ND), _ROWS)]
    joint: NDArray[np.float64] = np.concatenate(parts).astype(np.float64) + np.log1p(-means_KD).sum(1) + log_weights_K
    return joint


def _log_sum(logs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    most_N = logs_NK.max(1)
    summed: NDArray[np.float64] = most_N + np.log(np.exp(logs_NK - most_N[:, None]).sum(1))
    return summed


def _read(store: Store, split: str) -> NDArray[np.uint8]:
    count = len(store.lengths(split))
    return store.gather(split, np.arange(count), np.zeros(count, np.int64), store.kind.width or 0)
