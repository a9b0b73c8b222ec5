"""Search space of dotted names -> the list of trials: a pure function of space, samples and seed.

The same command therefore means the same trials, and more samples only append to the list. A name that says nothing
beside the others of a trial is no part of it, and no two trials train the same.
"""

import functools
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zfdist.config import ONLY_WHERE, Config, ConfigError, Only, unknown_name

Values = Mapping[str, tuple[Any, ...]]
Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is swept. Every name of `grid` is also drawn from in random samples."""

    grid: Values = field(default_factory=dict)
    """All combinations are tried."""
    choice: Values = field(default_factory=dict)
    """Drawn evenly from these values."""
    uniform: Bounds = field(default_factory=dict)
    """Drawn evenly between two bounds."""
    loguniform: Bounds = field(default_factory=dict)
    """Drawn between two positive bounds, evenly in the logarithm."""
    only: Mapping[str, Only] = field(default_factory=dict)
    """Names that are part of a trial only beside some values of another; those of ONLY_WHERE are so anyway."""

    def names(self) -> list[str]:
        """Return the swept names; raises ConfigError for one that is given twice, unknown, or has bad bounds."""
        names = [*self.grid, *self.choice, *self.uniform, *self.loguniform]
        known = Config().flat()
        for name in (*names, *self.only, *(only.name for only in self.only.values())):
            if name not in known:
                raise ConfigError(unknown_name(name, known))
            if names.count(name) > 1:
                raise ConfigError(f"{name} is swept in two ways; give it to one of grid, choice, uniform, loguniform")
        for name, (low, high) in (*self.uniform.items(), *self.loguniform.items()):
            if not low <= high or (name in self.loguniform and low <= 0):
                raise ConfigError(f"{name} = {low:g},{high:g}: must be two rising bounds, above 0 for loguniform")
        return names

    def conditions(self, name: str) -> list[Only]:
        """Return where a name says something; everywhere, if there are none."""
        return [where[name] for where in (ONLY_WHERE, self.only) if name in where]

    def ordered(self) -> list[str]:
        """Return the swept names, each behind those that decide whether it is part of a trial.

        Raises:
            ConfigError: as `names`, or if names wait for each other.
        """
        left, order = self.names(), list[str]()
        while left:
            ready = [n for n in left if not any(only.name in left for only in self.conditions(n))]
            if not ready:
                raise ConfigError(f"{' and '.join(left)} are each swept only where the other is")
            order += ready
            left = [n for n in left if n not in ready]
        return order

    def spoken(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point without the names that say nothing there; `base` is the flat config that trials change."""
        kept: dict[str, Any] = {}
        names = self.ordered()

        def holds(only: Only) -> bool:
            if only.name in names:
                return only.name in kept and only.holds(kept[only.name])
            return only.holds(base[only.name])

        for name in names:
            if all(holds(only) for only in self.conditions(name)):
                kept[name] = point[name]
        return {name: kept[name] for name in self.names() if name in kept}


DEFAULT = Space(
    grid={"loss.alpha": (0.0, 0.005), "loss.beta": (0.0, 0.005), "loss.kl.kind": ("constant", "linear")},
    loguniform={"loss.kl.increment": (1e-4, 1e-2)},
    uniform={"loss.kl.start": (0.05, 1.0)},
)
"""With and without each cost of the paper, with and without annealing; samples vary the annealing too."""


class Trial(NamedTuple):
    """One point of the space."""

    id: str
    values: dict[str, Any]
    """Its value of each swept name that says something there."""


class Listing(NamedTuple):
    """The trials of a space, and what was left out of them."""

    trials: list[Trial]
    combinations: int
    """Of the grid."""
    samples: int
    equal: int
    """Combinations and samples that would train the same as an earlier one."""


def trial_id(number: int) -> str:
    """Return the name of a trial: of its folder, and in all tables."""
    return f"{number:03}"


def essence(base: Config, values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return what a trial trains: equal for two exactly if no knob that says something differs.

    Raises:
        ConfigError: if a value cannot be.
    """
    return _essence(base, tuple(values.items()))


@functools.lru_cache(maxsize=100_000)  # every suggestion asks it of all trials
def _essence(base: Config, values: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    flat = base.with_values(dict(values)).flat()
    return tuple(
        (name, value)
        for name, value in sorted(flat.items())
        if name not in ONLY_WHERE or ONLY_WHERE[name].holds(flat[ONLY_WHERE[name].name])
    )


def listing(base: Config, space: Space, samples: int, seed: int) -> Listing:
    """Return the grid's combinations, in which names outside the grid keep their base value, then `samples` draws.

    Raises:
        ConfigError: if a name, bound or value cannot be, or says nothing in any trial; every trial's config is tried.
    """
    flat, names = base.flat(), space.names()
    _refuse_idle(flat, space)
    combinations = list(_combinations(space.grid))
    points = combinations + [draw(base, space, seed, i) for i in range(samples)]
    if not points:
        raise ConfigError("nothing to try: give --samples, or a --grid")
    found: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for point in points:
        values = space.spoken(flat, {name: point.get(name, flat[name]) for name in names})
        found.setdefault(essence(base, values), values)
    listed = [Trial(trial_id(i), values) for i, values in enumerate(found.values())]
    return Listing(listed, len(combinations), samples, len(points) - len(listed))


def trials(base: Config, space: Space, samples: int, seed: int) -> list[Trial]:
    """Return the trials of `listing`; raises as it does."""
    return listing(base, space, samples, seed).trials


def refuse_bounds(base: Config, space: Space) -> None:
    """Raise ConfigError if a value that may be drawn cannot be; each end of a range is tried."""
    _refuse_idle(base.flat(), space)
    flat = base.flat()
    for name, values in (*space.grid.items(), *space.choice.items()):
        for value in values:
            base.with_values({name: value})
    for name, bounds in (*space.uniform.items(), *space.loguniform.items()):
        for bound in bounds:
            base.with_values({name: rounded(bound, type(flat[name]))})


def _refuse_idle(flat: Mapping[str, Any], space: Space) -> None:
    """Raise ConfigError for a name that would say nothing in any trial."""
    told = {**space.grid, **space.choice}
    ranged = {*space.uniform, *space.loguniform}
    for name in space.ordered():
        for only in space.conditions(name):
            possible: Sequence[Any] = told.get(only.name, (flat[only.name],))
            if only.name not in ranged and not any(only.holds(value) for value in possible):
                raise ConfigError(
                    f"{name} says something only where {only}, and it is {' or '.join(map(str, possible))} in all "
                    f"trials; leave {name} out, or set {only.name}"
                )


def _combinations(grid: Values) -> Iterator[dict[str, Any]]:
    if grid:
        for combination in itertools.product(*grid.values()):
            yield dict(zip(grid, combination, strict=True))


def draw(base: Config, space: Space, seed: int, index: int) -> dict[str, Any]:
    """Draw sample `index`; each value depends on nothing but the seed, the index and its own name."""
    flat = base.flat()

    def part(name: str) -> float:
        return random.Random(f"{seed}/{index}/{name}").random()

    point = {
        name: values[int(part(name) * len(values))] for name, values in (*space.grid.items(), *space.choice.items())
    }
    point |= {name: low + part(name) * (high - low) for name, (low, high) in space.uniform.items()}
    for name, (low, high) in space.loguniform.items():
        point[name] = math.exp(math.log(low) + part(name) * (math.log(high) - math.log(low)))
    drawn = {*space.uniform, *space.loguniform}
    return {n: rounded(v, type(flat[n])) if n in drawn else v for n, v in point.items()}


def rounded(value: float, kind: type) -> int | float:
    """Return a number that was drawn as trials have it: whole, or with four digits."""
    return round(value) if kind is int else float(f"{value:.4g}")
