"""What the scores of a split amount to: bounds as means over sequences, and what must be known to compare them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zfdist.data.kinds import Kind
from zfdist.errors import ZfdistError
from zfdist.evaluation.bounds import COLUMNS, Importance, Sums, sums_of

_LEGACY_BATCH = 32
_MOST_NATS = 700.0  # whose exponential a float still holds


class EvaluationError(ZfdistError):
    """A model and a split that cannot be evaluated together; the message names both and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a model. The data are those of its config."""

    split: str
    seeds: Sequence[int]
    """Roots of the posterior's noise; numbers are means over them."""
    importance: Importance | None = None
    """How to make the importance-weighted bound as well; None for the ELBO alone."""
    with_legacy_denominator: bool = False
    """Give the ELBO as the authors' code divides it as well; see `legacy_rows`."""
    as_trained: bool = False
    """Read data that are other than the model was trained on under its own mean, std and vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The ELBO of a set of sequences (KL weight 1), in nats; means over sequences unless the name says otherwise."""

    sequences: int
    frames: int
    """Scored frames: of sound, pixels, or words with the </s> of each sentence."""
    samples: int
    """Scored samples: frames times samples of a frame."""
    elbo_nats: float
    log_px_nats: float
    """Reconstruction part of the ELBO."""
    kl_nats: float
    kl_nats_per_frame: float
    nats_per_sample: float
    """ELBO per scored sample; a log-density in normalised units, so it may be positive."""
    bits_per_sample: float
    """The same in bits."""
    seed: int
    """Root of the posterior's noise; the first one, if there are several."""


@dataclass(frozen=True, kw_only=True)
class Result(Bound):
    """Bounds, and what must be known to compare them with others; None for what was not asked or does not apply."""

    split: str
    view: str
    """What a sequence is: segments or utterances."""
    kind: str
    """What the data are: pcm16, bits or tokens."""
    system: str
    is_exact: bool
    """Whether the ELBO is the log-likelihood itself, as it is without latents."""
    density: str
    parameters: int
    """Numbers that were trained."""
    groups: int
    """Rows of the data (recordings, images) or reviews that the sequences are of: what came by itself."""
    elbo_stderr_nats: float
    """Standard error of the mean, over groups, as for all others; NaN for a single one."""
    nats_per_sample_stderr: float
    mean: float
    """Mean of the training samples that the model's units subtract, in stored integer units."""
    std: float
    """Their standard deviation, one normalised unit, in stored integer units."""
    sigma_floor: float
    """Smallest standard deviation of the output density, in normalised units."""
    step: int
    """Optimizer steps of the evaluated weights."""
    num_seeds: int
    seed_stderr: Mapping[str, float]
    """Standard error over the seeds by the name of a number; empty for one seed."""
    iwae_samples: int | None = None
    iwae_nats: float | None = None
    iwae_stderr_nats: float | None = None
    nll_nats: float | None = None
    """Of images: minus the ELBO, an upper bound; exact without latents."""
    iwae_nll_nats: float | None = None
    perplexity: float | None = None
    """Of sentences: exp(-sum of ELBOs / sum of (words + 1)), an upper bound; </s> counts, <s> does not."""
    perplexity_stderr: float | None = None
    """That of its logarithm times it."""
    iwae_perplexity: float | None = None
    unknown_share: float | None = None
    """Of sentences: how many of the words, without </s>, are <unk> to the model."""
    legacy_rows: int | None = None
    legacy_elbo_nats: float | None = None
    """Sum of the ELBOs over `legacy_rows` instead of `sequences`."""
    labelled: int | None = None
    """Sequences with a known label, for a model with a label head."""
    accuracy: float | None = None
    """Share of them whose label the head finds."""


def bound_of(sums: Sums, frame_samples: int, seed: int) -> Bound:
    """Return the ELBO that sums over a set of sequences amount to; raises EvaluationError if there are none."""
    n, frames = int(sums.sequences), int(sums.frames)
    if n == 0:
        raise EvaluationError("no sequences to evaluate: every recording of the split is shorter than two frames")
    samples = frames * frame_samples
    mean = sums.elbo / n
    return Bound(
        sequences=n,
        frames=frames,
        samples=samples,
        elbo_nats=mean,
        log_px_nats=sums.log_px / n,
        kl_nats=sums.kl / n,
        kl_nats_per_frame=sums.kl / frames,
        nats_per_sample=sums.elbo / samples,
        bits_per_sample=sums.elbo / samples / math.log(2.0),
        seed=seed,
    )


def result_fields(
    scores_SNC: Tensor, groups_N: NDArray[np.int64], question: Question, kind: Kind, frame_samples: int
) -> dict[str, Any]:
    """Return the fields of a `Result` that follow from what `bounds.score` says of each sequence alone.

    Args:
        scores_SNC: for each seed, on the CPU.
        groups_N: number of the group that each sequence is of.
        question: what was asked.
        kind: of the data.
        frame_samples: samples of a frame.

    Raises:
        EvaluationError: if there are no sequences.
    """
    seeds = [dict(zip(COLUMNS, columns, strict=True)) for columns in scores_SNC.permute(0, 2, 1).numpy()]
    mean = dict(zip(COLUMNS, scores_SNC.mean(0).t().numpy(), strict=True))
    bound = bound_of(Sums(*sums_of(scores_SNC.mean(0)).tolist()), frame_samples, question.seeds[0])
    by_seed = [_numbers(one, question, kind) for one in seeds]
    means = {name: statistics.fmean(numbers[name] for numbers in by_seed) for name in by_seed[0]}
    errors = {name: _stderr([numbers[name] for numbers in by_seed]) for name in by_seed[0] if len(by_seed) > 1}
    ones_N = np.ones(len(groups_N))
    asked: dict[str, Any] = {
        "num_seeds": len(by_seed),
        "seed_stderr": errors,
        "groups": len(np.unique(groups_N)),
        "elbo_stderr_nats": ratio_stderr(mean["elbo_nats"], ones_N, groups_N),
        "nats_per_sample_stderr": ratio_stderr(mean["elbo_nats"], mean["frames"], groups_N) / frame_samples,
    }
    if question.importance is not None:
        spread = ratio_stderr(mean["iwae_nats"], ones_N, groups_N)
        asked |= {"iwae_samples": question.importance.samples, "iwae_stderr_nats": spread}
    if question.with_legacy_denominator:
        asked["legacy_rows"] = legacy_rows(bound.sequences)
    if mean["is_labelled"].any():
        asked["labelled"] = int(mean["is_labelled"].sum())
    if "perplexity" in means:
        asked["perplexity_stderr"] = means["perplexity"] * asked["nats_per_sample_stderr"]
    return vars(bound) | means | asked


def ratio_stderr(values_N: NDArray[np.float64], weights_N: NDArray[np.float64], groups_N: NDArray[np.int64]) -> float:
    """Return the standard error of sum(values) / sum(weights) over groups that came by themselves; NaN for one group.

    By its linearisation: the spread over groups of the sums of v - r w (Cochran, Sampling Techniques, 1977, Eq. 6.13).
    With weights 1 and groups of one sequence it is that of a mean.
    """
    _, places_N = np.unique(groups_N, return_inverse=True)
    count = int(places_N.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    total = weights_N.sum()
    residuals_G = np.bincount(places_N, values_N - values_N.sum() / total * weights_N)
    return float(np.sqrt(np.square(residuals_G).sum() * count / (count - 1)) / total)


def legacy_rows(sequences: int) -> int:
    """Return by what the authors' TIMIT code divides: the next multiple of 32, with one padded row at least.

    Their test mean counts padded rows, e.g. 1,696 for 1,680 utterances, which understates it by 0.94 %.
    """
    return (sequences // _LEGACY_BATCH + 1) * _LEGACY_BATCH


def perplexity(nats_per_word: float) -> float:
    """Return the perplexity that a log-probability (or bound) per word amounts to."""
    return math.exp(min(-nats_per_word, _MOST_NATS))


def _numbers(scores: Mapping[str, NDArray[np.float64]], question: Question, kind: Kind) -> dict[str, float]:
    """Return what one seed's scores amount to, by the names of `Result`."""
    n, totals = max(len(scores["id"]), 1), {"": float(scores["elbo_nats"].sum())}
    numbers = {"elbo_nats": totals[""] / n, "kl_nats": float(scores["kl_nats"].sum()) / n}
    if question.importance is not None:
        totals["iwae_"] = float(scores["iwae_nats"].sum())
        numbers["iwae_nats"] = totals["iwae_"] / n
    for prefix, total in totals.items():
        if kind.score == "nll_nats":
            numbers[f"{prefix}nll_nats"] = -total / n
        if kind.score == "perplexity":
            numbers[f"{prefix}perplexity"] = perplexity(total / max(float(scores["frames"].sum()), 1.0))
    if question.with_legacy_denominator:
        numbers["legacy_elbo_nats"] = totals[""] / legacy_rows(n)
    if scores["is_labelled"].any():
        numbers["accuracy"] = float(scores["is_correct"].sum() / scores["is_labelled"].sum())
    return numbers


def _stderr(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
