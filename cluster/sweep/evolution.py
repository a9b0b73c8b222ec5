"""Train a population generation by generation, each a sweep of its own; see `population` for what follows from what."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cluster.demand import Say
from cluster.sweep import population
from cluster.sweep.budget import spent_s
from cluster.sweep.driver import sweep
from cluster.sweep.plan import Stopping, SweepPlan
from cluster.sweep.population import Member, Next
from cluster.sweep.record import SweepRecord, state
from cluster.sweep.row import Row
from cluster.sweep.search_space import Trial
from cluster.sweep.stopping import passing_on
from zfdist.config import Config
from zfdist.run_protocol import OVER, STOP


class Board(Protocol):
    """What shows the runs of a generation."""

    def show(self, rows: Sequence[Row]) -> None:
        """Take their present state."""


def evolve(
    folder: Path,
    base: Config,
    until: Sequence[int],
    following: Next,
    plan: SweepPlan,
    *,
    board: Callable[[int], AbstractContextManager[Board]],
    say: Say,
) -> list[list[Member]] | None:
    """Train all generations that are not over; needs a connected Ray.

    Args:
        folder: of the sweep.
        base: the config that members change.
        until: the step at which each generation ends.
        following: what a generation follows from.
        plan: the objective, and where it runs; nothing is stopped early.
        board: gives what shows a generation that ends at a step, within a block.
        say: told what happens.

    Returns:
        The members of each generation with what they came to; None if it was asked to stop before the end.

    Raises:
        ZfdistError: what `sweep` does.
    """
    (folder / STOP).unlink(missing_ok=True)
    lineage: list[list[Member]] = []
    for number, end in enumerate(until):
        place = population.generation(folder, number)
        members = population.begun(folder, number, lineage[-1] if lineage else [], following)
        runs = {m.id: place / "trials" / m.id for m in members}
        copied = sum(m.parent not in (None, m.id) for m in members)
        if any(state(run) not in OVER for run in runs.values()):
            say(f"generation {number + 1} of {len(until)}, to step {end}: {copied} of {len(members)} copy another")
            for m in members:
                if m.parent is not None:
                    parent = population.generation(folder, number - 1) / "trials" / m.parent
                    population.inherit(parent, runs[m.id])
            tree = {"format": 1, "decided": {}, "names": list(members[0].values)}
            listed = [Trial(m.id, m.values) for m in members]
            record = SweepRecord(listed, tree | {"trials": [t._asdict() for t in listed]})
            before_s = sum(spent_s(population.generation(folder, i)) for i in range(number))
            part = dataclasses.replace(plan, stopping=Stopping("none"), search=None, spent_before_s=before_s)
            with board(end) as shown:
                show = passing_on(folder, place, shown.show)
                sweep(place, base.with_values({"train.steps": end}), record, part, show=show, say=say)
            if any(state(run) not in OVER for run in runs.values()):
                return None
        lineage.append(population.scored(folder, number, members, plan.goal.first, end))
    return lineage
