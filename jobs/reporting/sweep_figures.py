"""What a sweep's report shows of its search: history, importance, slices, parallel coordinates and the Pareto front.

Each is a figure and a CSV file. Nothing here trains, or needs Ray.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from cluster.sweep import record
from cluster.sweep.goal import Goal, from_tree, pareto_front
from cluster.sweep.search_space import Space
from cluster.sweep.suggest import Known, Search, importance
from jobs.reporting.figures import COLOURS, GREY, STYLE, save
from zfdist import atomic_io, run_protocol
from zfdist.config import Config

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_MOST_NAMES = 8
_MOST_LABELS = 12
_BEYOND = 0.05
_STATES = {"finished": "complete", "stopped": "pruned"}


class Scored(NamedTuple):
    """A trial that came to a validation."""

    trial: str
    state: str
    values: dict[str, Any]
    objectives: list[float]
    is_feasible: bool


class Swept(NamedTuple):
    """A sweep as its folder tells it."""

    base: Config
    space: Space
    goal: Goal
    scored: list[Scored]
    """In the order of their numbers."""


def read(folder: Path) -> Swept | None:
    """Return what a sweep with a space found; None for what is none, or has fewer than two trials with a validation."""
    told = record.read(folder)
    if told is None or told.space is None:
        return None
    goal, scored = from_tree(told.tree.get("goal", {})), []
    for trial in told.trials:
        run = folder / "trials" / trial.id
        best = goal.best(run_protocol.records(run))
        if best is not None:
            ended = record.state(run) or "unfinished"
            scored.append(Scored(trial.id, ended, trial.values, goal.values(best), goal.is_met(best)))
    base = Config().with_values({n: v for n, v in told.tree["decided"].items() if n in Config().flat()})
    return Swept(base, told.space, goal, scored) if len(scored) > 1 else None


def write(swept: Swept, out: Path, folder: Path) -> str:
    """Write figures and CSV files into `out / folder`; return the section of the page in `out`."""
    sections = [
        _history(swept, out, folder),
        _importance(swept, out, folder),
        _slices(swept, out, folder),
        _parallel(swept, out, folder),
    ]
    if len(swept.goal.objectives) > 1:
        sections.append(_pareto(swept, out, folder))
    return "\n\n".join(section for section in sections if section)


def _history(swept: Swept, out: Path, folder: Path) -> str:
    first, best, rows = swept.goal.first, math.nan, []
    for number, scored in enumerate(swept.scored):
        value = scored.objectives[0]
        if scored.is_feasible and (math.isnan(best) or first.is_better(value, best)):
            best = value
        rows.append([number, scored.trial, scored.state, value, "" if math.isnan(best) else best])
    atomic_io.write_csv(
        out / folder / "history.csv", [["number", "trial", "state", first.metric, "best so far"], *rows]
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
        for state, colour in (("finished", COLOURS[0]), ("stopped", GREY), ("other", COLOURS[1])):
            of = [r for r in rows if r[2] == state or (state == "other" and r[2] not in ("finished", "stopped"))]
            if of:
                axes.scatter([r[0] for r in of], [r[3] for r in of], s=14, color=colour, label=state)
        so_far = [(r[0], r[4]) for r in rows if r[4] != ""]
        axes.step(*zip(*so_far, strict=True), where="post", color="#222222", label="best so far") if so_far else None
        _label(axes, "trial", first.metric)
        axes.set_ylim(*_middle([scored.objectives[0] for scored in swept.scored]))
        axes.legend(loc="best", fontsize=8)
        save(figure, out / folder / "history.png")
    return _shown(folder, "history", "The objective of each trial, and the best so far")


def _importance(swept: Swept, out: Path, folder: Path) -> str:
    known = [
        Known(s.values, "complete", 0, s.objectives[:1]) for s in swept.scored if _STATES.get(s.state) == "complete"
    ]
    parts = importance(Search(swept.base, swept.space, swept.goal, "tpe", 0), known)
    if not parts:
        return ""
    atomic_io.write_csv(out / folder / "importance.csv", [["name", "importance"], *map(list, parts.items())])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 0.8 + 0.3 * len(parts)), layout="constrained")
        axes.barh(list(parts), list(parts.values()), color=COLOURS[0], height=0.6)
        axes.invert_yaxis()
        _label(axes, "part of the objective's variation among the better trials", "")
        save(figure, out / folder / "importance.png")
    return _shown(folder, "importance", f"Importance by PED-ANOVA, from {len(known)} finished trials")


def _slices(swept: Swept, out: Path, folder: Path) -> str:
    names = [n for n in swept.space.names() if any(n in s.values for s in swept.scored)][:_MOST_NAMES]
    metrics = [o.metric for o in swept.goal.objectives]
    head = ["trial", "state", *swept.space.names(), *metrics]
    rows = [
        [s.trial, s.state, *(s.values.get(n, "") for n in swept.space.names()), *s.objectives] for s in swept.scored
    ]
    atomic_io.write_csv(out / folder / "slices.csv", [head, *rows])
    columns = min(4, len(names))
    with plt.rc_context(STYLE):
        lines = -(-len(names) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(2.3 * columns, 2.2 * lines), layout="constrained", squeeze=False, sharey=True
        )
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(grid.flat, names, strict=False):
            of = [s for s in swept.scored if name in s.values]
            axes.scatter(
                [_axis_value(s.values[name]) for s in of], [s.objectives[0] for s in of], s=12,
                color=[COLOURS[0] if s.state == "finished" else GREY for s in of],
            )  # fmt: skip
            if name in swept.space.loguniform:
                axes.set_xscale("log")
            _label(axes, name, "")
        grid[0, 0].set_ylim(*_middle([s.objectives[0] for s in swept.scored]))
        grid[0, 0].set_ylabel(metrics[0])
        save(figure, out / folder / "slices.png")
    return _shown(folder, "slices", "The objective over each swept name; grey: stopped early")


def _parallel(swept: Swept, out: Path, folder: Path) -> str:
    names = [n for n in swept.space.names() if len({str(s.values.get(n)) for s in swept.scored}) > 1][:_MOST_NAMES]
    if len(names) < 2:
        return ""
    losses = [swept.goal.first.loss(s.objectives[0]) for s in swept.scored]
    order = np.argsort(np.argsort(losses)) / max(1, len(losses) - 1)  # 0 is best
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(1.5 * len(names) + 1.5, 3.2), layout="constrained")
        places = [_places(swept, name) for name in names]
        for index in reversed(np.argsort(losses)):
            line = [place[index] for place in places]
            axes.plot(range(len(names)), line, color=plt.get_cmap("cividis")(order[index]), linewidth=1.0)
        for column, name in enumerate(names):
            axes.axvline(column, color="#888888", linewidth=0.8)
            for place, text in _ends(swept, name):
                axes.annotate(text, (column, place), (3, 0), textcoords="offset points", fontsize=7.5, va="center")
        axes.set_xticks(range(len(names)), [name.partition(".")[2] for name in names])
        axes.set_yticks([])
        save(figure, out / folder / "parallel.png")
    text = "Each line a trial, the darker the better; a name that says nothing in a trial lies below its axis"
    return f"![{text}]({(folder / 'parallel.png').as_posix()})\n\n{text}. Values: slices.csv."


def _pareto(swept: Swept, out: Path, folder: Path) -> str:
    able = [s for s in swept.scored if s.is_feasible]
    front = pareto_front(swept.goal, [s.objectives for s in able])
    metrics = [o.metric for o in swept.goal.objectives]
    rows = [[s.trial, is_on, *s.objectives] for s, is_on in zip(able, front, strict=True)]
    atomic_io.write_csv(out / folder / "pareto.csv", [["trial", "on the front", *metrics], *rows])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
        for s, is_on in zip(able, front, strict=True):
            axes.scatter(
                *s.objectives[:2], s=22 if is_on else 12, color=COLOURS[1] if is_on else GREY, zorder=2 + is_on
            )
            if is_on and sum(front) <= _MOST_LABELS:
                axes.annotate(s.trial, s.objectives[:2], (4, 4), textcoords="offset points", fontsize=7.5)
        _label(axes, metrics[0], metrics[1])
        save(figure, out / folder / "pareto.png")
    return _shown(folder, "pareto", "The Pareto front: trials that no other beats in all objectives")


def _places(swept: Swept, name: str) -> list[float]:
    """Return each trial's height on the axis of a name, 0 to 1; below it where the name says nothing."""
    found = [s.values.get(name) for s in swept.scored]
    known = sorted({v for v in found if v is not None}, key=_sort_key)
    if name in (*swept.space.uniform, *swept.space.loguniform):
        is_log = name in swept.space.loguniform
        low, high = (swept.space.loguniform if is_log else swept.space.uniform)[name]
        scale = (lambda v: math.log(v)) if is_log else float
        width = scale(high) - scale(low) or 1.0

        def place(
            value: float,
        ) -> float:  # a grid's trials keep the base value, which may lie beyond the range, or be 0
            if value < low or value > high:
                return 1 + _BEYOND if value > high else -_BEYOND
            return (scale(value) - scale(low)) / width

        return [-0.1 if v is None else place(v) for v in found]
    return [-0.1 if v is None else known.index(v) / max(1, len(known) - 1) for v in found]


def _ends(swept: Swept, name: str) -> list[tuple[float, str]]:
    """Return what is written along the axis of a name."""
    if name in (*swept.space.uniform, *swept.space.loguniform):
        low, high = {**swept.space.uniform, **swept.space.loguniform}[name]
        return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]
    known = sorted({s.values[name] for s in swept.scored if name in s.values}, key=_sort_key)
    return [(i / max(1, len(known) - 1), str(v)) for i, v in enumerate(known)]


def _sort_key(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _axis_value(value: Any) -> Any:
    return str(value) if isinstance(value, bool | str) else value


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """Return limits that leave out the lowest and highest twentieth if they lie far off."""
    low, high = np.quantile(values, (0.05, 0.95))
    margin = 0.35 * (high - low) or 1.0
    return max(low - margin, min(values) - 0.05 * margin), min(high + margin, max(values) + 0.05 * margin)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _shown(folder: Path, name: str, text: str) -> str:
    place = (folder / name).as_posix()
    return f"![{text}]({place}.png)\n\n{text}. Values: [{name}.csv]({place}.csv)."
