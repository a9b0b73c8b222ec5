"""Search space of dotted names -> the list of trials: a pure function of space, samples and seed.

The same command therefore means the same trials, and more samples only append to the list.
"""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zfdist import atomic_io
from zfdist.checkpoint.run_folder import config_of
from zfdist.config import Config, ConfigError, unknown_name

FILE = "sweep.json"
"""In a sweep's folder: its base config, space and trials."""

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

    def names(self) -> list[str]:
        """Return the swept names; raises ConfigError for one that is given twice, unknown, or has bad bounds."""
        names = [*self.grid, *self.choice, *self.uniform, *self.loguniform]
        known = Config().flat()
        for name in names:
            if name not in known:
                raise ConfigError(unknown_name(name, known))
            if names.count(name) > 1:
                raise ConfigError(f"{name} is swept in two ways; give it to one of grid, choice, uniform, loguniform")
        for name, (low, high) in (*self.uniform.items(), *self.loguniform.items()):
            if not low <= high or (name in self.loguniform and low <= 0):
                raise ConfigError(f"{name} = {low:g},{high:g}: must be two rising bounds, above 0 for loguniform")
        return names


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
    """Its value of each swept name."""


class SweepRecord(NamedTuple):
    """A sweep's trials, and what is written down of it."""

    trials: list[Trial]
    tree: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write it into the sweep's folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_io.write_json(folder / FILE, self.tree)


def trials(base: Config, space: Space, samples: int, seed: int) -> list[Trial]:
    """Return the grid's combinations, in which names outside the grid keep their base value, then `samples` draws.

    Raises:
        ConfigError: if a name, bound or value cannot be; every trial's config is tried here.
    """
    names = space.names()
    points = list(_combinations(space.grid)) + [_draw(base, space, seed, i) for i in range(samples)]
    if not points:
        raise ConfigError("nothing to try: give --samples, or a --grid")
    flat = base.flat()
    points = [{name: point.get(name, flat[name]) for name in names} for point in points]
    for point in points:
        base.with_values(point)
    return [Trial(f"{i:03}", point) for i, point in enumerate(points)]


def prepare(folder: Path, base: Config, search: Space, *, samples: int, seed: int) -> SweepRecord:
    """Return the trials of a sweep; one that was begun must be the same, but may have more samples.

    Raises:
        ConfigError: if a trial cannot be, or the sweep in `folder` is another one; names the difference.
    """
    listed = trials(base, search, samples, seed)
    return _recorded(folder, base, _decisive(base, search, seed), search.names(), listed)


def prepare_list(folder: Path, base: Config, points: Sequence[dict[str, Any]]) -> SweepRecord:
    """Return a sweep with a trial for each of `points`, which all have the same names; as `prepare`.

    Raises:
        ConfigError: if a trial cannot be, or the sweep in `folder` is another one; names the difference.
    """
    for point in points:
        base.with_values(point)
    listed = [Trial(f"{i:03}", point) for i, point in enumerate(points)]
    decided = base.flat() | {f"{name} of trial {trial.id}": v for trial in listed for name, v in trial.values.items()}
    return _recorded(folder, base, decided, list(points[0]), listed)


def _recorded(
    folder: Path, base: Config, decisive: Mapping[str, Any], names: list[str], listed: list[Trial]
) -> SweepRecord:
    decided = json.loads(json.dumps(decisive))
    before = _read(folder / FILE)
    if before is None:
        changed = _difference_from_trials(folder, base, listed)
    else:
        changed = _difference(before["decided"], decided)
        if changed is None and len(before["trials"]) > len(listed):
            changed = f"it had {len(before['trials'])} trials and now has {len(listed)}"
    if changed:
        raise ConfigError(f"{folder} is another sweep: {changed}; go on with the old command, or take another --name")
    tree = {"format": 1, "base": json.loads(base.to_json()), "decided": decided}
    return SweepRecord(listed, tree | {"names": names, "trials": [t._asdict() for t in listed]})


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a sweep's file says; None if there is none, or a crash left it empty or torn."""
    try:
        tree = json.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    is_whole = isinstance(tree, dict) and isinstance(tree.get("decided"), dict) and isinstance(tree.get("trials"), list)
    return tree if is_whole else None


def _difference_from_trials(folder: Path, base: Config, listed: list[Trial]) -> str | None:
    """Return how trials that were begun differ from those that are listed, where the sweep's own file is lost."""
    try:
        begun = sorted(path.name for path in (folder / "trials").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    values = {trial.id: trial.values for trial in listed}
    for name in begun:
        if name not in values:
            return f"it has a trial {name}, and now there are {len(listed)} trials"
        known = config_of(folder / "trials" / name)
        if known is None:
            continue  # it has not come to anything yet
        now, before = base.with_values(values[name]).flat(), known.flat()
        if now["model.parameter_budget"]:  # what a run writes down has it spent
            now |= {key: before[key] for key in ("model.parameter_budget", "model.hidden", "model.mlp_dim")}
        if changed := _difference(before, now):
            return f"{changed} in trial {name}"
    return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference of two flat mappings as a sentence, or None if there is none."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r} and now is {now.get(name)!r}"
    return None


def _decisive(base: Config, space: Space, seed: int) -> dict[str, Any]:
    """Return all that decides the trials, flat and ready for JSON."""
    swept = {
        f"{kind.name} {name}": list(values)
        for kind in dataclasses.fields(space)
        for name, values in getattr(space, kind.name).items()
    }
    return base.flat() | swept | {"the sweep's seed": seed}


def _combinations(grid: Values) -> Iterator[dict[str, Any]]:
    if grid:
        for combination in itertools.product(*grid.values()):
            yield dict(zip(grid, combination, strict=True))


def _draw(base: Config, space: Space, seed: int, index: int) -> dict[str, Any]:
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
    return {n: _rounded(v, type(flat[n])) if n in drawn else v for n, v in point.items()}


def _rounded(value: float, kind: type) -> int | float:
    return round(value) if kind is int else float(f"{value:.4g}")
