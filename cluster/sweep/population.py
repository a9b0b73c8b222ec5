"""Population based training (Jaderberg et al., 2017) by generations: what a run's knobs should be, and when.

    runs/NAME/generations/03/lineage.json       who goes on from whom in this generation, with which values
    runs/NAME/generations/03/trials/005/        member 005's run: from its parent's checkpoint to the next exchange
    runs/NAME/schedule.json schedule.csv        the values that the best member of the end was trained with, by step
    runs/NAME/population.csv                    all members of all generations

A generation is a sweep without early stopping. The next one is a function of its results, the seed and its number, and
is written down before it is begun. So a killed driver goes on with the same population. (Ray Tune's own scheduler draws
from global random states at moments that depend on timing, and keeps its state in memory.)
"""

import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.sweep.goal import Objective
from cluster.sweep.record import read_tree
from cluster.sweep.search_space import Space, draw, refuse_bounds, rounded, trial_id
from zfdist import atomic_io
from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config, ConfigError
from zfdist.run_protocol import records

GENERATIONS = "generations"
LINEAGE = "lineage.json"
SCHEDULE = "schedule.json"
_QUARTER = 4
_REDRAWN = 0.25
"""How often a copied value is drawn anew rather than moved, as in the paper."""
_MOVED_BY = (0.8, 1.2)
_NEVER = ("model.", "data.", "engine.", "checkpoint.", "train.")
"""Knobs that a run keeps from its first step to its last."""


class Member(NamedTuple):
    """One member of a population in one generation."""

    id: str
    parent: str | None
    """Whose checkpoint of the generation before it goes on from; None in the first."""
    values: dict[str, Any]
    objective: float | None = None
    """At its last validation; None if it came to none, or diverged."""


Next = Callable[[int, Sequence[Member]], list[Member]]
"""(number of the generation, members of the one before with their objectives) -> its members."""


def refuse(base: Config, space: Space, size: int, interval: int) -> None:
    """Raise ConfigError if such a population cannot be trained."""
    for name in space.names():
        if name.startswith(_NEVER):
            raise ConfigError(f"--scheduler pbt: {name} cannot change while a run is trained; sweep loss.* or optim.*")
    if size < _QUARTER:
        raise ConfigError(f"--population {size}: must be {_QUARTER} or more, as the best quarter is copied")
    if not 0 < interval < base.train.steps:
        raise ConfigError(f"--interval-steps {interval}: must be below train.steps = {base.train.steps}")
    refuse_bounds(base, space)


def evolving(base: Config, space: Space, objective: Objective, size: int, seed: int) -> Next:
    """Return how a population evolves: the worst quarter goes on from the best quarter, with other values."""

    def following(number: int, before: Sequence[Member]) -> list[Member]:
        if number == 0:
            return [Member(trial_id(i), None, _spoken(base, space, draw(base, space, seed, i))) for i in range(size)]
        ranked = sorted(before, key=lambda m: (m.objective is None, objective.loss(m.objective or 0.0)))
        alive = [m for m in ranked if m.objective is not None]
        if not alive:
            raise ConfigError(f"all {len(before)} members diverged by generation {number}: narrow the space")
        quarter = max(1, size // _QUARTER)
        best, worst = alive[:quarter], {m.id for m in ranked[max(quarter, len(ranked) - quarter) :]}
        members = []
        for m in before:
            if m.objective is not None and m.id not in worst:
                members.append(Member(m.id, m.id, m.values))
                continue
            chance = random.Random(f"{seed}/{number}/{m.id}")
            parent = best[chance.randrange(len(best))]
            members.append(Member(m.id, parent.id, explored(base, space, parent.values, chance)))
        return members

    return following


def explored(base: Config, space: Space, values: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return values near to these: numbers a fifth more or less, one of a list its neighbour, or now and then any."""
    flat = base.flat()
    point = {**flat, **values}
    anew = draw(base, space, chance.getrandbits(32), 0)
    for name in space.names():
        if name not in values or chance.random() < _REDRAWN:
            point[name] = anew[name]
        elif name in (*space.uniform, *space.loguniform):
            low, high = {**space.uniform, **space.loguniform}[name]
            moved = rounded(values[name] * chance.choice(_MOVED_BY), type(flat[name]))
            point[name] = type(flat[name])(min(max(moved, low), high))
        else:
            listed = {**space.grid, **space.choice}[name]
            place = listed.index(values[name]) + chance.choice((-1, 1))
            point[name] = listed[min(max(place, 0), len(listed) - 1)]
    return _spoken(base, space, point)


def _spoken(base: Config, space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    flat = base.flat()
    return space.spoken(flat, {**flat, **point})


def generation(folder: Path, number: int) -> Path:
    """Return where a generation lives."""
    return folder / GENERATIONS / f"{number:02}"


def ends(steps: int, interval: int) -> list[int]:
    """Return the steps at which generations end; the last is that of the run."""
    return [*range(interval, steps, interval), steps]


def begun(folder: Path, number: int, before: Sequence[Member], following: Next) -> list[Member]:
    """Return the members of a generation: as they were written down, or as they follow from those before."""
    place = generation(folder, number)
    kept = read_tree(place / LINEAGE)
    if kept is not None:
        return [Member(**member) for member in kept["members"]]
    members = following(number, before)
    place.mkdir(parents=True, exist_ok=True)
    atomic_io.write_json(place / LINEAGE, {"members": [m._asdict() for m in members]})
    return members


def inherit(parent: Path, run: Path) -> None:
    """Let a run that has no checkpoint go on from the newest of another's; the files are shared, not copied."""
    if checkpoint.steps(run) or not checkpoint.steps(parent):
        return
    step = checkpoint.steps(parent)[-1]
    final = checkpoint.folder_of(run, step)
    fresh = final.with_name(f".{final.name}.inherited")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(checkpoint.folder_of(parent, step), fresh, copy_function=_linked)
    fresh.rename(final)
    atomic_io.sync_folder(final.parent)


def _linked(source: str, to: str) -> str:
    try:
        os.link(source, to)
    except OSError:  # a file system without links
        shutil.copy2(source, to)
    return to


def scored(folder: Path, number: int, members: Sequence[Member], objective: Objective, end: int) -> list[Member]:
    """Return the members of a generation with what they came to at its end."""
    found = []
    for m in members:
        run = generation(folder, number) / "trials" / m.id
        at_end = [r[objective.metric] for r in records(run) if r["step"] == end and r.get(objective.metric) is not None]
        found.append(m._replace(objective=at_end[-1] if at_end else None))
    return found


def schedule(lineage: Sequence[Sequence[Member]], objective: Objective) -> list[Member]:
    """Return, for each generation, the member that the best one of the last descends from."""
    able = [m for m in lineage[-1] if m.objective is not None]
    line = [min(able, key=lambda m: objective.loss(m.objective or 0.0))] if able else []
    for members in reversed(lineage[:-1]):
        if line and line[0].parent is not None:
            line.insert(0, next(m for m in members if m.id == line[0].parent))
    return line


def write(
    folder: Path, lineage: Sequence[Sequence[Member]], until: Sequence[int], objective: Objective
) -> list[Member]:
    """Write population.csv, schedule.csv and schedule.json; return the schedule."""
    names = list(dict.fromkeys(name for members in lineage for m in members for name in m.values))
    since = [0, *until]
    rows = [
        [number, since[number], until[number], m.id, m.parent, *(m.values.get(n) for n in names), m.objective]
        for number, members in enumerate(lineage)
        for m in members
    ]
    head = ["generation", "from_step", "to_step", "member", "parent", *names, objective.metric]
    atomic_io.write_csv(folder / "population.csv", [head, *rows])
    line = schedule(lineage, objective)
    followed = [[since[i], until[i], m.id, *(m.values.get(n) for n in names), m.objective] for i, m in enumerate(line)]
    head = ["from_step", "to_step", "member", *names, objective.metric]
    atomic_io.write_csv(folder / "schedule.csv", [head, *followed])
    parts = [{"until_step": until[i], "values": m.values} for i, m in enumerate(line)]
    atomic_io.write_json(folder / SCHEDULE, {"objective": list(objective), "parts": parts})
    return line


def following_schedule(folder: Path, base: Config, seeds: int) -> tuple[list[int], Next]:
    """Return the ends of a found schedule's parts, and members that follow it, or keep its last values, over seeds.

    Raises:
        ConfigError: if the sweep in `folder` found no schedule, or one for another number of steps.
    """
    told = read_tree(folder / SCHEDULE)
    parts = [] if told is None else told.get("parts", [])
    if not parts:
        raise ConfigError(f"--from-schedule {folder}: holds no {SCHEDULE}; --scheduler pbt writes one when it is over")
    until = [int(part["until_step"]) for part in parts]
    if until[-1] != base.train.steps:
        raise ConfigError(
            f"--from-schedule {folder}: is for train.steps = {until[-1]}, and here are {base.train.steps}"
        )
    numbers = range(base.train.seed + 1, base.train.seed + 1 + seeds)

    def following(number: int, before: Sequence[Member]) -> list[Member]:
        members = []
        for way, values in (("schedule", parts[number]["values"]), ("constant", parts[-1]["values"])):
            for seed in numbers:
                name = f"{way}-seed-{seed}"
                members.append(Member(name, name if number else None, {**values, "train.seed": seed}))
        return members

    return until, following
