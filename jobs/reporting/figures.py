"""Figures of a report, drawn with matplotlib into PNG files; nothing here computes a result.

Colours are Okabe and Ito's, told apart by colour-blind readers; what colour says, a label, dash or shape says as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy.signal import stft

from jobs.reporting.axes import Numbers, Scale, label_ends, limits, over_steps
from jobs.reporting.run_history import Curve, History, systems_of
from zfdist import atomic_io
from zfdist.data.kinds import Kind
from zfdist.evaluation.compare import Difference

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WITHOUT_AUX, WITH_AUX = COLOURS[1], COLOURS[0]
GREY = "#B5B5B5"
_MOST_RANKED = 24
_MOST_LABELS = 9
_DECIBELS = 70.0
STYLE = {
    "figure.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}
_ON_ANY_GROUND = {
    "axes.grid": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.titlecolor", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#7A828A"
    ),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), "inherit"),
}


def learning_curves(path: Path, histories: Sequence[History], labels: Sequence[str], kind: Kind) -> None:
    """Draw ELBO per sequence over steps: training left, validation right, the best runs coloured and labelled.

    `histories` come best first; those beyond the number of colours are grey.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.4), layout="constrained")
        ends = []
        for rank in reversed(range(len(histories))):
            is_named = rank < len(COLOURS)
            colour, width = (COLOURS[rank], 1.6) if is_named else (GREY, 0.9)
            train, valid = histories[rank].curve("train/elbo_nats"), histories[rank].curve("valid/elbo_nats")
            left.plot(*train, color=colour, linewidth=0.6, alpha=0.3 if is_named else 0.0)
            left.plot(*_smooth(train), color=colour, linewidth=width)
            right.plot(*valid, color=colour, linewidth=width, marker="o", markersize=2.5 if is_named else 1.5)
            if valid.steps and is_named:
                ends.append((valid.steps[-1], valid.values[-1], labels[rank], colour))
        data = histories[0].config.data
        views = {view: f"{name}s" for view, name in kind.sequences.items()}
        views["segments"] = f"segments of {data.segment_frames} {kind.frame}s"
        left.set_title(f"Training ({views[data.train_view]})")
        right.set_title(f"Validation ({views[data.eval_view]})")
        bound = "log-likelihood" if all(history.is_exact for history in histories) else "ELBO"
        left.set_ylabel(f"{bound} (nats per {kind.sequences[data.train_view]})")
        if data.eval_view != data.train_view:
            right.set_ylabel(f"{bound} (nats per {kind.sequences[data.eval_view]})")
        for axes, name in ((left, "train/elbo_nats"), (right, "valid/elbo_nats")):
            over_steps(axes)
            axes.set_ylim(*limits([h.curve(name).values for h in histories]))
            axes.yaxis.set_major_formatter(Numbers())
        label_ends(right, ends)
        if len(histories) > len(COLOURS):
            text = f"grey: the other {_runs(len(histories) - len(COLOURS))}"
            right.text(1.04, 0.0, text, transform=right.transAxes, color="#777777", fontsize=8.5, va="center")
        save(figure, path)


def kl_curves(path: Path, histories: Sequence[History], kind: Kind) -> None:
    """Draw the KL term per frame over training, with and without the auxiliary cost: the paper's Figure 2.

    Several systems have a colour each; what is exact has no KL term and is left out.
    """
    systems = systems_of(histories)
    histories = [history for history in histories if not history.is_exact]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        groups: dict[tuple[str, bool, bool], list[Curve]] = {}
        ends = []
        for history in histories:
            key = (history.system, history.has_aux, history.is_annealed)
            curve = _smooth(history.curve("train/kl_nats_per_frame"))
            groups.setdefault(key, []).append(curve)
            if curve.steps:
                weights = f"\u03b1 {history.config.loss.alpha:g}, \u03b2 {history.config.loss.beta:g}"
                text = weights if len(systems) == 1 else history.system + f", {weights}" * history.has_aux
                ends.append((curve.steps[-1], curve.values[-1], text, _kl_colour(systems, *key[:2])))
        for (system, has_aux, is_annealed), curves in sorted(groups.items(), reverse=True):
            style: dict[str, Any] = {
                "color": _kl_colour(systems, system, has_aux),
                "linestyle": (0, (4, 1.5)) if is_annealed else "-",
                "linewidth": 1.6 if len(histories) <= _MOST_LABELS and (has_aux or len(systems) == 1) else 1.1,
            }
            for curve in curves:
                axes.plot(*curve, **style)
            what = "with auxiliary cost (\u03b1 > 0)" if has_aux else "without (\u03b1 = 0)"
            if len(systems) > 1:
                what = f"{system} with auxiliary cost" if has_aux else system
            when = "KL annealed" if is_annealed else "KL weight 1"
            axes.plot([], [], label=f"{what}, {when}: {_runs(len(curves))}", **style)
        axes.set_ylabel(f"KL(q \u2016 p) in training (nats per {kind.frame})")
        axes.set_ylim(bottom=0)
        over_steps(axes)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if len(ends) <= _MOST_LABELS:
            label_ends(axes, ends)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=1, handlelength=2.6, borderaxespad=0)
        save(figure, path)


def _kl_colour(systems: Sequence[str], system: str, has_aux: bool) -> str:
    """Return the colour of a curve: by the auxiliary cost, or the system's where there are several."""
    if len(systems) == 1:
        return WITH_AUX if has_aux else WITHOUT_AUX
    return COLOURS[systems.index(system) % len(COLOURS)]


def sweep(path: Path, histories: Sequence[History], labels: Sequence[str], kind: Kind) -> None:
    """Draw the best validation ELBO of each run over alpha and beta, and all runs in order; the best comes first."""
    scored = [(h, label) for h, label in zip(histories, labels, strict=True) if h.best]
    elbos = [h.best.elbo_nats for h, _ in scored if h.best]
    ranked = scored[:_MOST_RANKED]
    with plt.rc_context(STYLE):
        names_in = 0.068 * max(len(label + _ending(h)) for h, label in ranked)  # width that they take, about
        figure, (plane, order) = plt.subplots(
            1, 2, figsize=(6.8 + names_in, max(3.4, 1.1 + 0.24 * len(ranked))), layout="constrained",
            width_ratios=(1.25, 1),
        )  # fmt: skip
        low, high = limits([elbos])
        colours = {"cmap": "cividis", "vmin": low, "vmax": high, "edgecolors": "#333333", "linewidths": 0.6}
        _alpha_beta_plane(plane, [h for h, _ in scored], elbos, colours)
        for place, ((history, _), elbo) in enumerate(zip(ranked, elbos, strict=False)):
            order.scatter(elbo, place, c=[elbo], s=38, marker=_marker(history), clip_on=False, zorder=3, **colours)
        order.set_yticks(range(len(ranked)), [label + _ending(h) for h, label in ranked])
        order.get_yticklabels()[0].set_fontweight("bold")
        order.invert_yaxis()
        order.set_ylim(len(ranked) - 0.4, -0.6)
        sequence = kind.sequences[histories[0].config.data.eval_view]
        order.set_xlabel(f"best validation ELBO (nats per {sequence})")
        order.xaxis.set_major_locator(MaxNLocator(4))
        order.xaxis.set_major_formatter(Numbers())
        order.grid(axis="y", visible=True)
        which = "All runs" if len(ranked) == len(scored) else f"The best {len(ranked)} of {len(scored)} runs"
        order.set_title(f"{which}; colours as on the left")
        save(figure, path)


def differences(path: Path, best: str, found: Sequence[Difference], unit: str) -> None:
    """Draw what each configuration scores more than the best, with two standard errors over sequences."""
    with plt.rc_context(STYLE):
        names_in = 0.068 * max(len(one.first) for one in found)
        size = (4.8 + names_in, 1.1 + 0.28 * len(found))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        for place, one in enumerate(found):
            error = 0.0 if one.nats_per_sample_stderr != one.nats_per_sample_stderr else 2 * one.nats_per_sample_stderr
            axes.errorbar(one.nats_per_sample, place, xerr=error, fmt="o", color=COLOURS[0], capsize=3, markersize=5)
        axes.axvline(0.0, color="#444444", linewidth=0.8)
        axes.set_yticks(range(len(found)), [one.first for one in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel(f"{unit} more than {best}, with two standard errors")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(Numbers())
        save(figure, path)


def speech(
    path: Path, waves: Mapping[str, NDArray[np.float32]], sample_rate: int, beside: Sequence[NDArray[np.float32]] = ()
) -> None:
    """Draw waveform and log spectrogram of each sound by its title, all on the same axes.

    The axes are those that also the sounds `beside` would fit, the first of which is the original, so that pictures of
    sounds one by one compare. The ground is clear and the text grey, to be read on a white page and on a dark one.
    """
    scale = list(beside) or list(waves.values())
    peak = max(float(np.abs(wave).max()) for wave in scale) or 1.0
    loudest = _spectrum(scale[0], sample_rate)[2].max()
    size = (2.75 * len(waves) + 0.9, 3.9) if len(waves) > 1 else (5.2, 3.4)
    with plt.rc_context(STYLE | _ON_ANY_GROUND):
        figure, grid = plt.subplots(
            2, len(waves), figsize=size, layout="constrained", squeeze=False,
            sharex=True, sharey="row", height_ratios=(1, 1.5),
        )  # fmt: skip
        for column, (title, wave) in enumerate(waves.items()):
            wave_axes, spectrum_axes = grid[:, column]
            wave_axes.plot(np.arange(len(wave)) / sample_rate, wave, color=COLOURS[0], linewidth=0.25)
            wave_axes.set_title(title)
            wave_axes.set_ylim(-1.05 * peak, 1.05 * peak)
            frequencies, times, decibels = _spectrum(wave, sample_rate)
            image = spectrum_axes.pcolormesh(
                times, frequencies / 1000, decibels - loudest, cmap="magma", vmin=-_DECIBELS, vmax=0, rasterized=True
            )
            spectrum_axes.set_xlabel("time (s)")
        grid[0, 0].set_ylabel("amplitude\n(full scale = 1)")
        grid[1, 0].set_ylabel("frequency (kHz)")
        grid[1, 0].set_xlim(0, max(len(wave) for wave in scale) / sample_rate)
        figure.colorbar(image, ax=grid[1, :], label="dB re original's peak", pad=0.01, aspect=14)
        save(figure, path)


def _alpha_beta_plane(axes: Any, histories: Sequence[History], elbos: Sequence[float], colours: Any) -> None:
    """Each run at its alpha and beta; runs that share a place stand side by side."""
    alphas = Scale([h.config.loss.alpha for h in histories])
    betas = Scale([h.config.loss.beta for h in histories])
    places = [(h.config.loss.alpha, h.config.loss.beta) for h in histories]
    for index, (history, elbo) in enumerate(zip(histories, elbos, strict=True)):
        here = [i for i, place in enumerate(places) if place == places[index]]
        x = alphas.of(places[index][0]) + min(0.3, 0.8 / len(here)) * (here.index(index) - (len(here) - 1) / 2)
        y = betas.of(places[index][1])
        axes.scatter(x, y, c=[elbo], s=95, marker=_marker(history), zorder=3, **colours)
        if index == 0:
            axes.scatter(x, y, s=330, facecolors="none", edgecolors=COLOURS[1], linewidths=1.6, zorder=2)
            axes.annotate("best", (x, y), (0, 12), textcoords="offset points", ha="center", color=COLOURS[1])
    axes.set_xticks(*alphas.ticks())
    axes.set_yticks(*betas.ticks())
    axes.margins(0.22)
    axes.set_xlabel("\u03b1, weight of the auxiliary cost")
    axes.set_ylabel("\u03b2, weight of backward prediction")
    for marker, text in (("o", "KL weight 1"), ("D", "KL annealed")):
        if any(_marker(h) == marker for h in histories):
            axes.scatter([], [], marker=marker, s=50, facecolors="#BBBBBB", edgecolors="#333333", label=text)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handletextpad=0.2, columnspacing=1.2)


def _marker(history: History) -> str:
    return "D" if history.is_annealed else "o"


def _ending(history: History) -> str:
    return "" if history.state == "finished" else f" ({history.state} at {history.step:,})"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _smooth(curve: Curve) -> Curve:
    """A centred running mean over a fifteenth of the points."""
    half = len(curve.values) // 30
    means = [float(np.mean(curve.values[max(0, i - half) : i + half + 1])) for i in range(len(curve.values))]
    return Curve(curve.steps, means)


def _spectrum(wave: NDArray[np.float32], sample_rate: int) -> tuple[Any, Any, Any]:
    window = min(512, len(wave))
    frequencies, times, values = stft(wave, sample_rate, nperseg=window, noverlap=window * 3 // 4, boundary=None)
    return frequencies, times, 20 * np.log10(np.abs(values) + 1e-7)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_io.replacing(path) as fresh:
        figure.savefig(fresh, format="png", bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)
