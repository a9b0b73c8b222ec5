"""Differences between models on the same sequences: paired, with errors over sequences and over training seeds.

    d_n = a_n - b_n                      bounds of sequence n, means over the runs of a configuration
    mean     sum d / N                   its error over groups of sequences, see `ratio_stderr`
    seeds    sqrt(s_a^2 / m_a + s_b^2 / m_b)     s: spread of the runs' means over m training seeds (Welch)

The first error is what other test sequences would change, the second what other training seeds would.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zfdist.evaluation.results import EvaluationError, ratio_stderr
from zfdist.evaluation.scores import SAME, Scores

_NOT_OF_THE_MODEL = ("train.seed", "data.root", "data.cache", "data.prefetch_batches", "data.verify", "data.eval_batch")
_WORDS = {
    "data_fingerprint": "different data", "split": "different splits", "view": "other sequences (data.eval_view)",
    "segment_frames": "segments of other lengths", "frame_samples": "frames of other lengths",
    "mean": "other units (mean)", "std": "other units (std)", "words_sha256": "other vocabularies",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Side:
    """A configuration: one run, or several that differ in their training seed alone."""

    name: str
    runs: Sequence[Scores]
    bounds_RN: NDArray[np.float64]
    """The bound of each sequence by each run, in nats."""

    @property
    def bound_N(self) -> NDArray[np.float64]:
        """The bound of each sequence, mean over the runs."""
        means: NDArray[np.float64] = self.bounds_RN.mean(0)
        return means

    @property
    def seed_variance(self) -> float:
        """Squared standard error of the mean over training seeds; NaN for one run."""
        means_R = self.bounds_RN.mean(1)
        return float(means_R.var(ddof=1) / len(means_R)) if len(means_R) > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What one configuration scores more than another, in nats; errors are NaN where there is too little to tell."""

    first: str
    second: str
    mean_nats: float
    """Per sequence."""
    stderr_nats: float
    """Over test sequences, or what they are of."""
    seed_stderr_nats: float
    """Over training seeds."""
    nats_per_sample: float
    nats_per_sample_stderr: float
    """Over test sequences."""
    share_better: float
    """Of the sequences, those on which the first scores more."""


def sides(named: Mapping[str, Scores], bound: Literal["elbo", "iwae"] = "elbo") -> list[Side]:
    """Return the configurations of some runs, the best bound first.

    Args:
        named: scores by what people call the run.
        bound: which bound is compared.

    Raises:
        EvaluationError: naming two runs that do not compare, and in what they differ, or one without the bound.
    """
    refuse_incomparable(named, bound)
    groups: dict[str, list[str]] = {}
    for name, scores in named.items():
        groups.setdefault(_configuration(name, scores), []).append(name)
    found = []
    for names in groups.values():
        configs = [named[name].config for name in names]
        seeds = {config["train"]["seed"] for config in configs if config is not None}
        alone = [names] if len(seeds) == len(names) or len(names) == 1 else [[name] for name in names]
        for some in alone:
            title = some[0] if len(some) == 1 else f"{some[0]} and {len(some) - 1} more seed{'s' * (len(some) > 2)}"
            bounds_RN = np.stack([_bound(named[name], bound) for name in some])
            found.append(Side(name=title, runs=[named[name] for name in some], bounds_RN=bounds_RN))
    return sorted(found, key=lambda side: -float(side.bound_N.mean()))


def refuse_incomparable(named: Mapping[str, Scores], bound: Literal["elbo", "iwae"]) -> None:
    """Raise EvaluationError unless all were scored on the same sequences, in the same units, by the same bound."""
    (first, base), *others = named.items()
    for name, scores in named.items():
        if bound == "iwae" and scores.iwae_N is None and not scores.what["is_exact"]:
            raise EvaluationError(f"{name} has no IWAE bound in its scores: evaluate it with --bounds elbo,iwae")
    for name, scores in others:
        for field in SAME:
            if base.what[field] != scores.what[field]:
                values = f"{_shown(base.what[field])} and {_shown(scores.what[field])}"
                raise EvaluationError(f"{first} and {name} do not compare: {_WORDS[field]}, {values}")
        if list(base.ids_N) != list(scores.ids_N) or list(base.frames_N) != list(scores.frames_N):
            raise EvaluationError(f"{first} and {name} do not compare: their files hold different sequences")
    if bound == "iwae":
        numbers = {name: s.what["iwae_samples"] for name, s in named.items() if not s.what["is_exact"]}
        if len(set(numbers.values())) > 1:
            (one, k), (two, other) = next((a, b) for a in numbers.items() for b in numbers.items() if a[1] != b[1])
            raise EvaluationError(f"{one} and {two} do not compare: IWAE of {k} and of {other} trajectories")


def difference(first: Side, second: Side) -> Difference:
    """Return what the first scores more than the second, paired over sequences."""
    scores = first.runs[0]
    d_N, ones_N, groups_N = first.bound_N - second.bound_N, np.ones(len(scores.names)), scores.groups_N
    samples_N = scores.frames_N.astype(float) * scores.what["frame_samples"]
    return Difference(
        first=first.name,
        second=second.name,
        mean_nats=float(d_N.mean()),
        stderr_nats=ratio_stderr(d_N, ones_N, groups_N),
        seed_stderr_nats=math.sqrt(first.seed_variance + second.seed_variance),
        nats_per_sample=float(d_N.sum() / samples_N.sum()),
        nats_per_sample_stderr=ratio_stderr(d_N, samples_N, groups_N),
        share_better=float((d_N > 0).mean()),
    )


def _bound(scores: Scores, bound: Literal["elbo", "iwae"]) -> NDArray[np.float64]:
    return scores.elbo_N if bound == "elbo" or scores.iwae_N is None else scores.iwae_N


def _configuration(name: str, scores: Scores) -> str:
    """Return what runs have in common that are seeds of one configuration."""
    if scores.config is None:
        return name
    kept: dict[str, Any] = {
        f"{section}.{field}": value
        for section, fields in scores.config.items()
        if section != "checkpoint"
        for field, value in fields.items()
    }
    for field in _NOT_OF_THE_MODEL:
        kept.pop(field, None)
    return json.dumps(kept, sort_keys=True)


def _shown(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
