"""What sums over a split amount to: bounds as means over sequences, and what must be known to compare them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zfdist.data.kinds import Kind
from zfdist.errors import ZfdistError
from zfdist.evaluation.bounds import Importance, Sums

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
    elbo_stderr_nats: float
    """Standard error of the mean over sequences; NaN for a single one."""
    kl_nats_per_frame: float
    nats_per_sample: float
    """ELBO per scored sample; a log-density in normalised units, so it may be positive."""
    nats_per_sample_stderr: float
    """Standard error of that, over sequences as if each came by itself; NaN for a single one."""
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
    """Standard error of the mean over sequences."""
    nll_nats: float | None = None
    """Of images: minus the ELBO, an upper bound; exact without latents."""
    iwae_nll_nats: float | None = None
    perplexity: float | None = None
    """Of sentences: exp(-sum of ELBOs / sum of (words + 1)), an upper bound; </s> counts, <s> does not."""
    perplexity_stderr: float | None = None
    """Standard error over sentences, that of its logarithm times it."""
    iwae_perplexity: float | None = None
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
        elbo_stderr_nats=_spread(sums.elbo_squared, mean, n),
        kl_nats_per_frame=sums.kl / frames,
        nats_per_sample=sums.elbo / samples,
        nats_per_sample_stderr=_spread_of_ratio(sums) / frame_samples,
        bits_per_sample=sums.elbo / samples / math.log(2.0),
        seed=seed,
    )


def result_fields(sums: Tensor, question: Question, kind: Kind, frame_samples: int) -> dict[str, Any]:
    """Return the fields of a `Result` that follow from the sums of each seed alone, float64 [seeds, sums].

    Raises:
        EvaluationError: if there are no sequences.
    """
    mean = Sums(*sums.mean(0).tolist())
    bound = bound_of(mean, frame_samples, question.seeds[0])
    by_seed = [_numbers(Sums(*row), question, kind) for row in sums.tolist()]
    means = {name: statistics.fmean(numbers[name] for numbers in by_seed) for name in by_seed[0]}
    errors = {name: _stderr([numbers[name] for numbers in by_seed]) for name in by_seed[0] if len(by_seed) > 1}
    asked: dict[str, Any] = {"num_seeds": len(by_seed), "seed_stderr": errors}
    if question.importance is not None:
        spread = _spread(mean.iwae_squared, mean.iwae / bound.sequences, bound.sequences)
        asked |= {"iwae_samples": question.importance.samples, "iwae_stderr_nats": spread}
    if question.with_legacy_denominator:
        asked["legacy_rows"] = legacy_rows(bound.sequences)
    if mean.labelled:
        asked["labelled"] = int(mean.labelled)
    if "perplexity" in means:
        asked["perplexity_stderr"] = means["perplexity"] * bound.nats_per_sample_stderr
    return vars(bound) | means | asked


def legacy_rows(sequences: int) -> int:
    """Return by what the authors' TIMIT code divides: the next multiple of 32, with one padded row at least.

    Their test mean counts padded rows, e.g. 1,696 for 1,680 utterances, which understates it by 0.94 %.
    """
    return (sequences // _LEGACY_BATCH + 1) * _LEGACY_BATCH


def perplexity(nats_per_word: float) -> float:
    """Return the perplexity that a log-probability (or bound) per word amounts to."""
    return math.exp(min(-nats_per_word, _MOST_NATS))


def _numbers(sums: Sums, question: Question, kind: Kind) -> dict[str, float]:
    """Return what one seed's sums amount to, by the names of `Result`."""
    n, totals = max(sums.sequences, 1.0), {"": sums.elbo}
    numbers = {"elbo_nats": sums.elbo / n, "kl_nats": sums.kl / n}
    if question.importance is not None:
        totals["iwae_"] = sums.iwae
        numbers["iwae_nats"] = sums.iwae / n
    for prefix, total in totals.items():
        if kind.score == "nll_nats":
            numbers[f"{prefix}nll_nats"] = -total / n
        if kind.score == "perplexity":
            numbers[f"{prefix}perplexity"] = perplexity(total / max(sums.frames, 1.0))
    if question.with_legacy_denominator:
        numbers["legacy_elbo_nats"] = sums.elbo / legacy_rows(int(sums.sequences))
    if sums.labelled:
        numbers["accuracy"] = sums.correct / sums.labelled
    return numbers


def _spread(squares: float, mean: float, count: int) -> float:
    """Return the standard error of a mean over `count` sequences, from the sum of their squares."""
    if count < 2:
        return math.nan
    return math.sqrt(max(squares / count - mean * mean, 0.0) / (count - 1))


def _spread_of_ratio(sums: Sums) -> float:
    """Return the standard error of ELBO per frame, a ratio of means over sequences of several lengths.

    By its linearisation: the spread of E_i - r N_i over the mean of N (Cochran, Sampling Techniques, 1977, Eq. 6.13).
    """
    if sums.sequences < 2:
        return math.nan
    ratio = sums.elbo / sums.frames
    squares = sums.elbo_squared - 2 * ratio * sums.elbo_frames + ratio * ratio * sums.frames_squared
    return math.sqrt(max(squares, 0.0) * sums.sequences / (sums.sequences - 1)) / sums.frames


def _stderr(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
