"""Sound by what came right before: the variance of the previous frame, and linear prediction refitted at every frame.

    frame Gaussian    x_n ~ N(0, a v + b)            v: mean square of the frame before
    AR(16)            x_n ~ N(sum_i c_i x_{n-i}, a v + b)

c and v are the least-squares fit of linear prediction to all frames before the one that is scored, each weighing
`forgetting` times the one after it. a, b and the forgetting are chosen on the validation split, the only numbers that
anything is fitted to; the standard deviation is never below the floor that networks have. Samples are in the units of
the networks: less the mean, over the standard deviation.

Shapes: T frames of a sequence, the first of which is not scored; F samples of a frame; P = 17 samples and their past.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from zfdist.data.order import Sequences
from zfdist.data.store import Store

Floats = NDArray[np.float64]
ORDER = 16
_FORGETTING = (0.5, 0.7, 0.85)
_FACTORS = (1.0, 1.5, 2.0, 3.0)
_ADDED = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_VALID_SAMPLES = 2_000_000  # of the validation split, to choose by
_RIDGE = 1e-5
_BLOCK = 512  # frames at a time


class Frames(NamedTuple):
    """What a predictor says of each scored frame of a sequence: squared error, and the variance that it expects."""

    squares_T: Floats
    variances_T: Floats
    samples: int
    """Of a frame."""

    def log_p(self, factor: float, added: float, floor: float) -> float:
        """Return the log-density of all frames with variance `factor` v + `added`, in nats."""
        variance_T = np.maximum(factor * self.variances_T + added, floor**2)
        logs_T = self.samples * np.log(2 * math.pi * variance_T) + self.squares_T / variance_T
        return float(-0.5 * logs_T.sum())


Predictor = Callable[[Floats], Frames]


def previous_frame(x_TF: Floats) -> Frames:
    """Expect the mean square of the frame before."""
    squares_T = np.square(x_TF).sum(1)
    return Frames(squares_T[1:], squares_T[:-1] / x_TF.shape[1], x_TF.shape[1])


def linear_prediction(x_TF: Floats, forgetting: float) -> Frames:
    """Predict each sample from the 16 before it, by a fit to the frames before the sample's own."""
    frames, samples = x_TF.shape
    moments_TPP = np.concatenate([past_TFP.transpose(0, 2, 1) @ past_TFP for past_TFP in _pasts(x_TF)])
    # Sums over the frames before, and the samples that they are of.
    known_TPP = lfilter([1.0], [1.0, -forgetting], moments_TPP, axis=0)[:-1]
    counts_T = samples * (1 - forgetting ** np.arange(1, frames)) / (1 - forgetting)
    among_TPP, with_TP = known_TPP[:, 1:, 1:], known_TPP[:, 1:, 0]
    ridge_T = _RIDGE * np.trace(among_TPP, axis1=1, axis2=2) / ORDER + 1e-9 * counts_T
    weights_TP = np.linalg.solve(among_TPP + ridge_T[:, None, None] * np.eye(ORDER), with_TP[..., None])[..., 0]
    # The error of a frame is a quadratic form of its moments.
    error_TP = np.concatenate([np.ones((frames - 1, 1)), -weights_TP], axis=1)
    squares_T, fitted_T = (
        np.einsum("ti,tij,tj->t", error_TP, moments, error_TP, optimize=True)
        for moments in (moments_TPP[1:], known_TPP)
    )
    free_T = np.maximum(counts_T - ORDER, 1.0)  # of so many samples the fit has not taken its own
    return Frames(np.maximum(squares_T, 0.0), np.maximum(fitted_T, 0.0) / free_T, samples)


def _pasts(x_TF: Floats) -> Iterator[Floats]:
    """Yield every sample with the 16 before it, newest first, a block of frames at a time: [T, F, P]."""
    frames, samples = x_TF.shape
    line = np.concatenate([np.zeros(ORDER), x_TF.reshape(-1)])
    every = np.lib.stride_tricks.sliding_window_view(line, ORDER + 1)[:, ::-1]
    for first in range(0, frames, _BLOCK):
        last = min(first + _BLOCK, frames)
        yield every[first * samples : last * samples].reshape(last - first, samples, ORDER + 1)


def scores(
    store: Store, split: str, sequences_of: Callable[[str], Sequences], frame_samples: int, floor: float
) -> Iterator[tuple[str, Floats]]:
    """Yield name and log-density of each sequence of a split by each model.

    Args:
        store: the data.
        split: of which the sequences are scored.
        sequences_of: the view of a split.
        frame_samples: samples of a frame.
        floor: smallest standard deviation, in normalised units.
    """
    families: dict[str, Sequence[Predictor]] = {
        "frame-gaussian": [previous_frame],
        f"ar-{ORDER}": [lambda x_TF, by=by: linear_prediction(x_TF, by) for by in _FORGETTING],  # type: ignore[misc]
    }
    for name, predictors in families.items():
        predictor, factor, added = _chosen(predictors, store, sequences_of("valid"), frame_samples, floor)
        sounds = _sounds(store, split, sequences_of(split), frame_samples)
        yield name, np.array([predictor(x_TF).log_p(factor, added, floor) for x_TF in sounds])


def _chosen(
    predictors: Sequence[Predictor], store: Store, valid: Sequences, frame_samples: int, floor: float
) -> tuple[Predictor, float, float]:
    """Return the predictor, factor and added variance under which the validation split is likeliest."""
    best: tuple[float, Predictor, float, float] | None = None
    for predictor in predictors:
        frames, left = [], _VALID_SAMPLES
        for x_TF in _sounds(store, "valid", valid, frame_samples):
            frames.append(predictor(x_TF))
            left -= x_TF.size
            if left <= 0:
                break
        for factor, added in itertools.product(_FACTORS, _ADDED):
            reached = sum(one.log_p(factor, added, floor) for one in frames)
            if best is None or reached > best[0]:
                best = (reached, predictor, factor, added)
    assert best is not None, "there is a predictor"
    return best[1:]


def _sounds(store: Store, split: str, sequences: Sequences, frame_samples: int) -> Iterator[Floats]:
    """Yield each sequence as normalised frames [T, F], the first input among them."""
    for recording, start, frames in zip(sequences.recordings, sequences.starts, sequences.frames, strict=True):
        width = (int(frames) + 1) * frame_samples
        row = store.gather(split, np.array([recording]), np.array([start]), width)[0].astype(np.float64)
        yield ((row - store.mean) / store.std).reshape(-1, frame_samples)
