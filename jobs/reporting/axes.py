"""What is written along the axes of a figure: ticks with enough digits, logarithmic places, labels that stay apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import Formatter, MaxNLocator


class Numbers(Formatter):
    """Writes ticks with thousands apart, and as many decimals as tell them from each other."""

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the texts of all ticks of an axis."""
        places = np.asarray(values, float)
        near = 1e-6 * float(np.abs(np.diff(places)).min(initial=max(1.0, float(np.abs(places).max(initial=0)))))
        decimals = next((d for d in range(9) if np.all(np.abs(np.round(places, d) - places) <= near)), 9)
        return [f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in places]


class Scale:
    """Places values >= 0 on an axis: few at even distances, many by logarithm with 0 to their left."""

    def __init__(self, values: Sequence[float]) -> None:
        self._distinct = sorted(set(values))
        self._is_log = len(self._distinct) > 6

    def of(self, value: float) -> float:
        """Return the place of a value, one of those that it was made for."""
        if not self._is_log:
            return float(self._distinct.index(value))
        smallest = next(v for v in self._distinct if v > 0)
        return float(np.log10(value)) if value > 0 else float(np.floor(np.log10(smallest))) - 1

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return places and labels."""
        shown = self._distinct
        if self._is_log:
            positive = [v for v in self._distinct if v > 0]
            low, high = int(np.floor(np.log10(positive[0]))), int(np.ceil(np.log10(positive[-1])))
            shown = [0.0] * (self._distinct[0] == 0) + [10.0**power for power in range(low, high + 1)]
        return [self.of(v) for v in shown], [f"{v:g}" for v in shown]


def over_steps(axes: Any) -> None:
    """Let the x-axis be that of updates."""
    axes.set_xlabel("update")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(Numbers())


def limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits that show all but the lowest twentieth, so that first steps and outbursts do not flatten the rest."""
    values = np.sort(np.concatenate([np.asarray(curve, float) for curve in curves] or [np.zeros(1)]))
    if not values.size:
        return 0.0, 1.0
    low, high = float(values[int(0.05 * len(values))]), float(values[-1])
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def label_ends(axes: Any, ends: Sequence[tuple[int, float, str, str]]) -> None:
    """Write each label at the right edge, at the height where its curve ends, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.075
    order = sorted(ends, key=lambda end: -end[1])
    wanted = [min(1.0, max(0.0, (value - low) / (high - low))) for _, value, _, _ in order]
    heights: list[float] = []
    for index, height in enumerate(wanted):
        heights.append(min(height, heights[-1] - gap) if index else height)
    lowest = 0.1
    if heights and heights[-1] < lowest:  # no room left below: push them up again from the bottom
        heights[-1] = lowest
        for index in range(len(heights) - 2, -1, -1):
            heights[index] = max(heights[index], heights[index + 1] + gap)
    for (step, value, label, colour), height in zip(order, heights, strict=True):
        axes.annotate(
            label, (step, max(value, low)), (1.04, height), xycoords="data", textcoords="axes fraction", color=colour,
            va="center", fontsize=8.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip
