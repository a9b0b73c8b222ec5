"""What is written down of a sweep before anything is trained, and whether a command is the same sweep as before."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.sweep.search_space import Listing, Space, Trial, listing, refuse_bounds, trial_id
from zfdist import atomic_io, run_protocol
from zfdist.checkpoint.run_folder import config_of
from zfdist.config import Config, ConfigError, Only
from zfdist.run_protocol import RESULT

FILE = "sweep.json"
"""In a sweep's folder: its base config, space and trials."""
SUGGESTION = "suggestion.json"
"""In the folder of a trial that a search suggested: its values, written before they are used."""


class Suggestion(NamedTuple):
    """A point that a search came to from what it knew."""

    values: dict[str, Any]
    notes: dict[str, Any]
    """The sampler's own, which it will want to see again."""

    def write(self, folder: Path) -> None:
        """Write it into a trial's folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_io.write_json(folder / SUGGESTION, self._asdict())


class SweepRecord(NamedTuple):
    """A sweep's trials, and what is written down of it."""

    trials: list[Trial]
    """Those that are known: also the suggestions of before."""
    tree: dict[str, Any]
    space: Space | None = None
    to_suggest: int = 0
    """Trials that a search has still to think of."""
    listing: Listing | None = None

    def write(self, folder: Path) -> None:
        """Write it into the sweep's folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_io.write_json(folder / FILE, self.tree)


def prepare(
    folder: Path, base: Config, search: Space, *, samples: int, seed: int, sampler: str | None = None
) -> SweepRecord:
    """Return the trials of a sweep; one that was begun must be the same, but may have more samples.

    Args:
        folder: of the sweep.
        base: the config that trials change.
        search: its space.
        samples: trials beside the grid's combinations.
        seed: of the samples.
        sampler: which search suggests the samples; None to draw them.

    Raises:
        ConfigError: if a trial cannot be, or the sweep in `folder` is another one; names the difference.
    """
    decisive = _decisive(base, search, seed) | ({} if sampler is None else {"the sweep's search": sampler})
    if sampler is None:
        listed = listing(base, search, samples, seed)
        record = _recorded(folder, base, decisive, search.names(), listed.trials)
        return record._replace(space=search, listing=listed)
    refuse_bounds(base, search)
    listed = listing(base, search, 0, seed) if search.grid else Listing([], 0, 0, 0)
    if not listed.trials and not samples:
        raise ConfigError("nothing to try: give --samples, or a --grid")
    record = _recorded(folder, base, decisive, search.names(), listed.trials)
    made = suggestions(folder)
    if len(made) > samples:
        raise ConfigError(f"{folder} has {len(made)} suggested trials: --samples {samples} is fewer")
    return SweepRecord(
        listed.trials + [Trial(number, made[number].values) for number in sorted(made)],
        record.tree,
        search,
        samples - len(made),
        listed._replace(samples=samples),
    )


def read(folder: Path) -> SweepRecord | None:
    """Return a sweep as its folder tells it, also what was suggested; None if there is none, or its file is torn."""
    tree = _read(folder / FILE)
    if tree is None:
        return None
    listed = [Trial(t["id"], t["values"]) for t in tree["trials"]]
    made = suggestions(folder)
    kinds = {kind.name: dict[str, Any]() for kind in dataclasses.fields(Space)}
    for key, values in tree["decided"].items():
        kind, _, name = key.partition(" ")
        if kind in kinds and isinstance(values, list):
            kinds[kind][name] = tuple(values)
    kinds["only"] = {
        name: Only(parent, tuple(values), unless) for name, (parent, values, unless) in kinds["only"].items()
    }
    space = Space(**kinds)
    listed += [Trial(name, made[name].values) for name in sorted(made)]
    return SweepRecord(listed, tree, space if space.names() else None)


def suggestions(folder: Path) -> dict[str, Suggestion]:
    """Return what was suggested so far, by the ids of the trials."""
    found = {}
    for path in sorted((folder / "trials").glob(f"*/{SUGGESTION}")):
        tree = read_tree(path)
        if tree is not None and isinstance(tree.get("values"), dict):
            found[path.parent.name] = Suggestion(tree["values"], tree.get("notes", {}))
    return found


def prepare_list(folder: Path, base: Config, points: Sequence[dict[str, Any]]) -> SweepRecord:
    """Return a sweep with a trial for each of `points`, which all have the same names; as `prepare`.

    Raises:
        ConfigError: if a trial cannot be, or the sweep in `folder` is another one; names the difference.
    """
    for point in points:
        base.with_values(point)
    listed = [Trial(trial_id(i), point) for i, point in enumerate(points)]
    decided = base.flat() | {f"{name} of trial {trial.id}": v for trial in listed for name, v in trial.values.items()}
    return _recorded(folder, base, decided, list(points[0]), listed)


def prepare_population(folder: Path, base: Config, search: Space, how: Mapping[str, Any], *, seed: int) -> SweepRecord:
    """Return a sweep whose trials follow from each other, generation by generation; `how` says in what way.

    Raises:
        ConfigError: if the sweep in `folder` is another one; names the difference.
    """
    return _recorded(folder, base, {**_decisive(base, search, seed), **how}, search.names(), [])


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


def read_tree(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is none, or a crash left it empty or torn."""
    try:
        tree = json.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a sweep's file says; None if there is none, or a crash left it empty or torn."""
    tree = read_tree(path)
    is_whole = tree is not None and isinstance(tree.get("decided"), dict) and isinstance(tree.get("trials"), list)
    return tree if is_whole else None


def _difference_from_trials(folder: Path, base: Config, listed: list[Trial]) -> str | None:
    """Return how trials that were begun differ from those that are listed, where the sweep's own file is lost."""
    try:
        begun = sorted(path.name for path in (folder / "trials").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    values = {trial.id: trial.values for trial in listed}
    for name in begun:
        if (folder / "trials" / name / SUGGESTION).is_file():
            continue
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


def state(folder: Path) -> str | None:
    """Return how the trial of a folder ended, one of OVER; None if it did not."""
    ended = run_protocol.result(folder)
    return None if ended is None else str(ended["state"])


def mark(folder: Path, **fields: Any) -> None:
    """Say how a trial ended, unless it already says so."""
    if state(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_io.write_json(folder / RESULT, fields)
