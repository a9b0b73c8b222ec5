"""Whether the best trials of a sweep differ by more than noise: each is trained again over other seeds, in pairs.

The best of many trials looks better than it is, as it was chosen for its luck too. So none of its own numbers count
here: every seed is new, and is the same for all, so that two settings compare seed by seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.sweep.goal import Goal, Objective
from cluster.sweep.record import SweepRecord
from cluster.sweep.search_space import Trial
from zfdist import atomic_io
from zfdist.config import Config
from zfdist.run_protocol import records

FOLDER = "confirm"
"""In a sweep's folder: a sweep of its own, whose trials are named TRIAL-seed-SEED."""
_SEED = "train.seed"


class Standing(NamedTuple):
    """What a setting came to over seeds."""

    trial: str
    values: dict[str, Any]
    by_seed: dict[int, float]
    """The objective of each seed whose run is over."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for a single seed, which tells nothing of it."""
        count = len(self.by_seed)
        return statistics.stdev(self.by_seed.values()) / math.sqrt(count) if count > 1 else 0.0


class Difference(NamedTuple):
    """How much better one setting is than another, by seeds that both have."""

    better: str
    other: str
    mean: float
    """0 or more."""
    standard_error: float
    seeds: int
    needed: float
    """Standard errors that the mean must exceed: the 97.5 % quantile of Student's t with one degree less than seeds."""

    @property
    def is_more_than_noise(self) -> bool:
        """Whether so large a difference has a chance of less than 5 % if there is none; for this pair alone."""
        return self.seeds > 1 and self.mean > self.needed * self.standard_error


def trials(base: Config, best: Sequence[Mapping[str, Any]], seeds: int) -> list[Trial]:
    """Return the runs over seeds of these results: the sweep's own seed is none of them."""
    own = base.train.seed
    return [
        Trial(f"{result['id']}-seed-{seed}", {**result["values"], _SEED: seed})
        for result in best
        for seed in range(own + 1, own + 1 + seeds)
    ]


def record(listed: Sequence[Trial], names: Sequence[str]) -> SweepRecord:
    """Return what is written down of them."""
    tree = {"format": 1, "decided": {}, "names": [*names, _SEED], "trials": [t._asdict() for t in listed]}
    return SweepRecord(list(listed), tree)


def standings(folder: Path, listed: Sequence[Trial], goal: Goal) -> list[Standing]:
    """Return what the runs in a folder came to, best mean first; a setting without a run that is over is left out."""
    found: dict[str, Standing] = {}
    for trial in listed:
        setting = trial.id.partition("-seed-")[0]
        values = {name: value for name, value in trial.values.items() if name != _SEED}
        standing = found.setdefault(setting, Standing(setting, values, {}))
        best = goal.best(records(folder / "trials" / trial.id))
        if best is not None:
            standing.by_seed[int(trial.values[_SEED])] = float(best[goal.first.metric])
    return sorted((s for s in found.values() if s.by_seed), key=lambda s: goal.first.loss(s.mean))


def difference(one: Standing, other: Standing, objective: Objective) -> Difference | None:
    """Return how two settings differ, paired by seed; None if they share no seed."""
    from scipy.stats import t

    shared = sorted(one.by_seed.keys() & other.by_seed.keys())
    if not shared:
        return None
    gains = [objective.loss(other.by_seed[seed]) - objective.loss(one.by_seed[seed]) for seed in shared]
    mean, count = statistics.fmean(gains), len(shared)
    error = statistics.stdev(gains) / math.sqrt(count) if count > 1 else math.inf
    needed = float(t.ppf(0.975, count - 1)) if count > 1 else math.inf
    better, worse = (one, other) if mean >= 0 else (other, one)
    return Difference(better.trial, worse.trial, abs(mean), error, count, needed)


def verdict(found: Sequence[Standing], objective: Objective) -> list[str]:
    """Return the standings in words, and whether the first is better than each other one by more than noise."""
    lines = [f"{objective.metric} over seeds, mean and standard error:"]
    lines += [f"  {s.trial}  {s.mean:.5g} +- {s.standard_error:.2g} ({len(s.by_seed)} seeds)" for s in found]
    for other in found[1:]:
        gap = difference(found[0], other, objective)
        if gap is None:
            continue
        word = "more than noise" if gap.is_more_than_noise else "no more than noise"
        lines.append(
            f"{gap.better} is better than {gap.other} by {gap.mean:.3g} +- {gap.standard_error:.2g}, paired by seed: "
            f"{word} (95 %: beyond {gap.needed * gap.standard_error:.3g})"
        )
    return lines


def write(folder: Path, found: Sequence[Standing], objective: Objective) -> None:
    """Write verdict.csv, a row for each setting: its values, its mean, and its difference to the best."""
    names = list(dict.fromkeys(name for s in found for name in s.values))
    seeds = sorted({seed for s in found for seed in s.by_seed})
    told_of = ["seeds", "mean", "standard_error", "behind_best", "its_standard_error", "more_than_noise"]
    rows: list[Sequence[object]] = [["trial", *names, *told_of, *(f"seed {seed}" for seed in seeds)]]
    for s in found:
        gap = difference(found[0], s, objective) if s is not found[0] else None
        told: list[object] = ["", "", ""] if gap is None else [gap.mean, gap.standard_error, gap.is_more_than_noise]
        values = [s.values.get(name) for name in names]
        rows.append(
            [s.trial, *values, len(s.by_seed), s.mean, s.standard_error, *told, *(s.by_seed.get(x) for x in seeds)]
        )
    atomic_io.write_csv(folder / "verdict.csv", rows)
