"""The schedule that a population found, drawn from what its sweep's folder says: each knob over steps, all members."""

import csv
from pathlib import Path
from typing import Any

import matplotlib

from jobs.reporting.axes import over_steps
from jobs.reporting.figures import COLOURS, GREY, STYLE, save

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_BESIDE = ("generation", "from_step", "to_step", "member", "parent", "train.seed")


def draw(folder: Path) -> Path | None:
    """Draw schedule.png from population.csv and schedule.csv; None if no member came to the end, or nothing varied."""
    members, followed = _rows(folder / "population.csv"), _rows(folder / "schedule.csv")
    names = [n for n in members[0] if n not in _BESIDE and len({row[n] for row in members}) > 1] if members else []
    if not followed or not names:
        return None
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(names), 1, figsize=(5.6, 1.6 * len(names) + 0.4), layout="constrained", squeeze=False, sharex=True
        )
        for axes, name in zip(grid.flat, names, strict=True):
            numeric = all(_is_number(row[name]) for row in members if row[name])
            for row in members:
                _part(axes, row, name, numeric, color=GREY, linewidth=0.8, alpha=0.7)
            for row in followed:
                _part(axes, row, name, numeric, color=COLOURS[0], linewidth=2.0)
            axes.set_ylabel(name)
            if numeric and _is_wide([float(row[name]) for row in members if row[name]]):
                axes.set_yscale("log")
        over_steps(grid.flat[-1])
        grid.flat[0].set_title("blue: what the best member was trained with; grey: all members")
        save(figure, folder / "schedule.png")
    return folder / "schedule.png"


def _part(axes: Any, row: dict[str, str], name: str, numeric: bool, **style: Any) -> None:
    """Draw what a member had between two exchanges."""
    if row[name]:
        value: Any = float(row[name]) if numeric else row[name]
        steps = [int(row["from_step"]), int(row["to_step"])]
        axes.plot(steps, [value, value], marker="|", markersize=4, **style)


def _is_wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 20


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
