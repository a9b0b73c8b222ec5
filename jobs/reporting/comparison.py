"""A comparison of models in words, as a table, and drawn."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.reporting.report_markdown import table
from zfdist import atomic_io
from zfdist.data.kinds import KINDS
from zfdist.evaluation.compare import Difference, Side, difference
from zfdist.evaluation.results import perplexity, ratio_stderr

_BOUNDS = {"elbo": "ELBO", "iwae": "IWAE"}
Row = list[str]


def lines(sides: Sequence[Side], bound: str) -> Iterator[str]:
    """Yield the lines that a terminal shows."""
    yield _of(sides[0])
    for head, rows in (_levels(sides, bound), _differences(sides)):
        yield ""
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            yield "  " + "  ".join(cells).rstrip()
    yield ""
    yield from _notes(sides)


def write(out: Path, sides: Sequence[Side], bound: str) -> list[Path]:
    """Write compare.md, compare.csv with every pair, and compare.png; return them."""
    from jobs.reporting import figures

    page, pairs, png = (out / f"compare.{suffix}" for suffix in ("md", "csv", "png"))
    out.mkdir(parents=True, exist_ok=True)
    found = [difference(one, other) for one, other in itertools.combinations(sides, 2)]
    names = [field.name for field in dataclasses.fields(Difference)]
    rows = [[getattr(one, name) for name in names] for one in found]
    atomic_io.write_csv(pairs, [names, *([("" if cell != cell else cell) for cell in row] for row in rows)])
    kind = KINDS[sides[0].runs[0].what["kind"]]
    differences = [difference(side, sides[0]) for side in sides[1:]]
    figures.differences(png, sides[0].name, differences, f"nats per {kind.sample}")
    blocks = [
        "# Comparison",
        _of(sides[0]),
        table(*_levels(sides, bound)),
        table(*_differences(sides)),
        f"![differences to {sides[0].name}]({png.name})",
        "\n".join(f"- {note}" for note in _notes(sides)),
    ]
    atomic_io.write(page, "\n\n".join(blocks) + "\n")
    return [page, pairs, png]


def _of(side: Side) -> str:
    scores = side.runs[0]
    what, kind = scores.what, KINDS[scores.what["kind"]]
    sequences = f"{len(scores.names):,} {kind.sequences[what['view']]}s"
    count = len(set(scores.groups))
    of = f" of {count:,} {kind.groups or kind.rows}" if count != len(scores.names) else ""
    return f"{what['split']} split of {what['data']}: {sequences}{of}, the same for all"


def _levels(sides: Sequence[Side], bound: str) -> tuple[Row, list[Row]]:
    what = sides[0].runs[0].what
    kind = KINDS[what["kind"]]
    head = ["", "runs", "step", f"{_BOUNDS[bound]}, nats per {kind.sequences[what['view']]}", f"nats per {kind.sample}"]
    head += ["perplexity"] * (kind.score == "perplexity")
    rows = []
    for side in sides:
        one = side.runs[0]
        samples_N = one.frames_N.astype(float) * what["frame_samples"]
        rate = side.bound_N.sum() / samples_N.sum()
        error = ratio_stderr(side.bound_N, samples_N, one.groups_N)
        mean_error = ratio_stderr(side.bound_N, samples_N * 0 + 1, one.groups_N)
        steps = sorted({run.what["step"] for run in side.runs if run.what.get("step") is not None})
        shown = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}" if steps else ""
        cells = [side.name, str(len(side.runs)), shown, _with(side.bound_N.mean(), mean_error), _with(rate, error, 5)]
        if kind.score == "perplexity":
            cells.append(_with(perplexity(rate), perplexity(rate) * error))
        rows.append(cells)
    return head, rows


def _differences(sides: Sequence[Side]) -> tuple[Row, list[Row]]:
    what = sides[0].runs[0].what
    kind = KINDS[what["kind"]]
    sequence = kind.sequences[what["view"]]
    head = [
        f"less {sides[0].name}", f"nats per {sequence}", "over seeds", f"nats per {kind.sample}", "standard errors",
        f"better on {sequence}s",
    ]  # fmt: skip
    rows = []
    for side in sides[1:]:
        d = difference(side, sides[0])
        error = d.nats_per_sample_stderr
        rows.append(
            [
                side.name,
                _with(d.mean_nats, d.stderr_nats),
                "" if math.isnan(d.seed_stderr_nats) else f"\u00b1 {d.seed_stderr_nats:,.2f}",
                _with(d.nats_per_sample, d.nats_per_sample_stderr, 5),
                "" if math.isnan(error) else f"{d.nats_per_sample / error:.1f}" if error else "",
                f"{d.share_better:.1%}",
            ]
        )
    return head, rows


def _notes(sides: Sequence[Side]) -> Iterator[str]:
    yield "\u00b1: standard error over the test sequences, of differences paired by sequence."
    if all(len(side.runs) == 1 for side in sides):
        yield "One run each: nothing is known of what other training seeds would give."
    else:
        yield "Over seeds: the error of the difference over training seeds, where both sides have two runs or more."
    if len(set(sides[0].runs[0].groups)) == 1:
        yield "All sequences are of one row of the data: the split is too small to say anything of others."
    exact = [side.name for side in sides if side.runs[0].what["is_exact"]]
    if exact and len(exact) < len(sides):
        yield f"Likelihoods themselves: {', '.join(exact)}; those of the others are lower bounds, and may lie higher."


def _with(value: float, error: float, decimals: int = 2) -> str:
    number = f"{value:,.{decimals}f}"
    return number if math.isnan(error) else f"{number} \u00b1 {error:,.{decimals}f}"
