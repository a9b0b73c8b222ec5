"""What trials are compared by: objectives, what else is required, and which of them are best."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from zfdist.config import ConfigError
from zfdist.config_base import unknown_name
from zfdist.run_protocol import VALID_ELBO, VALIDATION

Record = Mapping[str, Any]
"""Of a validation: the step, and metrics by their names in metrics.jsonl."""


class Objective(NamedTuple):
    """A metric that validations write, and whether more or less of it is better."""

    metric: str = VALID_ELBO
    mode: Literal["max", "min"] = "max"

    def is_better(self, one: float, other: float) -> bool:
        """Return whether one value is better than another."""
        return one > other if self.mode == "max" else one < other

    def loss(self, value: float) -> float:
        """Return a number that is lower for better values."""
        return -value if self.mode == "max" else value


class Requirement(NamedTuple):
    """A bound that a validation must keep to count."""

    metric: str
    sign: Literal[">=", "<="]
    bound: float

    def missed_by(self, value: float) -> float:
        """Return by how much a value misses it; 0 or less if it is met."""
        return self.bound - value if self.sign == ">=" else value - self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


@dataclass(frozen=True)
class Goal:
    """What a sweep looks for. Early stopping goes by the first objective."""

    objectives: tuple[Objective, ...] = (Objective(),)
    requirements: tuple[Requirement, ...] = ()

    @property
    def first(self) -> Objective:
        """The objective that trials are sorted by."""
        return self.objectives[0]

    def values(self, record: Record) -> list[float]:
        """Return a validation's value of each objective."""
        return [float(record[objective.metric]) for objective in self.objectives]

    def misses(self, record: Record) -> dict[str, float]:
        """Return by how much a validation misses each requirement; 0 or less where it is met."""
        return {str(r): r.missed_by(float(record[r.metric])) for r in self.requirements}

    def is_met(self, record: Record) -> bool:
        """Return whether a validation keeps to all requirements."""
        return all(missed <= 0 for missed in self.misses(record).values())

    def best(self, records: Iterable[Record]) -> Record | None:
        """Return the validation that a trial counts with, the first of equal ones; None if there is none.

        One that keeps to all requirements comes before one that does not, then the first objective decides.
        """
        complete = [r for r in records if all(r.get(name) is not None for name in self._metrics())]
        return min(complete, key=self._place, default=None)

    def sorted(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return results, which have all metrics, by the same order, best first."""
        return sorted(results, key=self._place)

    def _place(self, record: Record) -> tuple[float, float]:
        missed = sum(max(0.0, miss) for miss in self.misses(record).values())
        return missed, self.first.loss(float(record[self.first.metric]))

    def _metrics(self) -> list[str]:
        return [o.metric for o in self.objectives] + [r.metric for r in self.requirements]


def as_tree(goal: Goal) -> dict[str, Any]:
    """Return a goal in plain values."""
    return {"objectives": [list(o) for o in goal.objectives], "requirements": [list(r) for r in goal.requirements]}


def from_tree(tree: Mapping[str, Any]) -> Goal:
    """Return the goal that `as_tree` wrote; the default one of what says nothing."""
    objectives = tuple(Objective(*o) for o in tree.get("objectives", [])) or (Objective(),)
    return Goal(objectives, tuple(Requirement(*r) for r in tree.get("requirements", [])))


def parse_objective(text: str, mode: Literal["max", "min"]) -> Objective:
    """Return the objective in `METRIC` or `METRIC:max|min`; `mode` is that of one that does not say.

    Raises:
        ConfigError: for a metric that no validation writes, or another word after the colon.
    """
    metric, colon, told = text.partition(":")
    if colon and told not in ("max", "min"):
        raise ConfigError(f"--metric {text}: must be METRIC, METRIC:max or METRIC:min")
    return Objective(_known("--metric", metric), "min" if (told or mode) == "min" else "max")


def parse_requirement(text: str) -> Requirement:
    """Return the requirement in `METRIC>=NUMBER` or `METRIC<=NUMBER`.

    Raises:
        ConfigError: for a metric that no validation writes, or what is no such bound.
    """
    found = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=)\s*([-+0-9.eE]+)\s*", text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[3])
    except ValueError:
        raise ConfigError(
            f"--require {text!r}: must be METRIC>=NUMBER or METRIC<=NUMBER, e.g. 'valid/kl_nats_per_frame>=1'"
        ) from None
    return Requirement(_known("--require", found[1]), ">=" if found[2] == ">=" else "<=", bound)


def _known(flag: str, metric: str) -> str:
    if metric not in VALIDATION:
        near = unknown_name(metric, VALIDATION).partition("; ")[2] or f"there are {', '.join(VALIDATION)}"
        raise ConfigError(f"{flag} {metric}: no validation writes it; {near}")
    return metric


def pareto_front(goal: Goal, points: Sequence[Sequence[float]]) -> list[bool]:
    """Return of each point whether no other is at least as good in all objectives and better in one."""
    losses = [[o.loss(v) for o, v in zip(goal.objectives, point, strict=True)] for point in points]

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [not any(dominates(other, one) for other in losses) for one in losses]
