"""The text of a report, as Markdown that GitHub shows well; links are relative to its folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.reporting.run_history import DataSet, History, short, systems_of, varied
from zfdist.checkpoint.folder import CheckpointManifest
from zfdist.config import Config
from zfdist.evaluation.results import perplexity
from zfdist.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best run of a system: its checkpoint, evaluated."""

    history: History
    manifest: CheckpointManifest
    choice: str
    """Why this checkpoint, and of which updates the best validation and the newest checkpoint are."""
    parameters: int
    """Numbers that were trained."""
    bound: Sequence[tuple[str, str]] = ()
    """Names and values of its evaluation; empty if it could not be made."""
    shown: str = ""
    """Markdown of what it generates."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a report says of the runs on one data set, whose bounds compare."""

    data_set: DataSet
    histories: Sequence[History]
    """The best validation ELBO first."""
    figures: Mapping[str, str]
    """Paths relative to the page by name: curves, kl, sweep."""
    bests: Sequence[Best] = ()
    """Of each system, best first."""
    baselines: Sequence[Sequence[tuple[str, str]]] = ()
    """Of each simple model, its name and then numbers by their units, on the sequences of the best run."""
    problems: Sequence[str] = ()
    """Why there is no evaluation, or nothing generated."""


def title(parts: Sequence[Part]) -> str:
    """Return the first line of a page where none was asked for, e.g. "Z-Forcing and RNN on sentences"."""
    systems = systems_of(history for part in parts for history in part.histories)
    return f"{_listed(systems)} on {_listed(dict.fromkeys(part.data_set.kind.title for part in parts))}"


def markdown(heading: str, parts: Sequence[Part]) -> str:
    """Return the whole report."""
    if len(parts) == 1:
        blocks = [_summary(parts[0]), *_part(parts[0], "##")]
    else:
        count = sum(len(part.histories) for part in parts)
        blocks = [
            f"{count} runs on {len(parts)} data sets, each with a part of its own below: bounds on different data, or "
            "on other sequences of the same data, do not compare, and no run here is the best of all.",
            "\n".join(f"{i}. [{part.data_set.shown}](#part-{i})" for i, part in enumerate(parts, start=1)),
        ]
        for number, part in enumerate(parts, start=1):
            anchor = f'<a id="part-{number}"></a>'
            blocks += [f"## {anchor}{number}. {part.data_set.shown}", _summary(part), *_part(part, "###")]
    return "\n\n".join(block for block in [f"# {heading}", *blocks] if block) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _part(part: Part, level: str) -> Iterator[str]:
    yield f"{level} The bound"
    yield from _bound(part)
    if len(part.histories) > 1:
        yield f"{level} All runs"
        yield from _runs(part)
    yield f"{level} Learning curves"
    yield _figure(part, "curves", f"{_bound_name(part.histories)} per sequence over updates")
    yield " ".join(_curves(part.histories))
    if "kl" in part.figures:
        yield f"{level} The KL term"
        yield _figure(part, "kl", f"KL per {part.data_set.kind.frame} over updates")
        yield _kl(part.histories)
    for best in part.bests:
        if best.shown:
            yield f"{level} What `{best.history.name}` generates"
            yield best.shown
    yield f"{level} How to do it again"
    yield from _again(part)


def _curves(histories: Sequence[History]) -> Iterator[str]:
    yield (
        f"Training: the {_bound_name(histories)} of training sequences, means over the updates between two log lines "
        "(thin) and their running mean (thick). Validation: that of the validation split."
    )
    if not all(history.is_exact for history in histories):
        yield "Both have KL weight 1 and no auxiliary cost."
    if any(history.config.data.train_view != history.config.data.eval_view for history in histories):
        yield "They differ in what a sequence is, so that their levels do not compare."
    yield "The lowest twentieth of the values lies below the axes."


def _bound_name(histories: Sequence[History]) -> str:
    return "log-likelihood" if all(history.is_exact for history in histories) else "ELBO"


def _summary(part: Part) -> str:
    best, kind, count = part.histories[0], part.data_set.kind, len(part.histories)
    runs = "One run" if count == 1 else f"{count} runs"
    who = f"{runs} of {_listed(systems_of(part.histories))} on {kind.title}"
    if best.best is None:
        return f"{who}; none was validated yet."
    bound = _bound_name([best])
    sequence = kind.sequences[best.config.data.eval_view]
    scores = [f"{bound} {best.best.elbo_nats:,.1f} nats per {sequence} at update {best.best.step:,}"]
    if kind.score == "perplexity":
        at_most = "" if best.is_exact else "at most "
        scores.append(f"a perplexity of {at_most}{perplexity(best.best.nats_per_sample):,.1f} per {kind.frame}")
    if not best.is_exact:
        scores.append(f"{best.best.kl_nats_per_frame:.2g} nats of KL per {kind.frame}")
    named = f"`{best.name}`" if count == 1 else f"the best is `{best.name}` ({best.system})"
    return f"{who}; {named}: validation {', '.join(scores)}."


def _bound(part: Part) -> Iterator[str]:
    for problem in part.problems:
        yield f"> {problem}"
    for best in part.bests:
        if best.bound:
            who = (
                f"**{best.history.system}**: `{best.history.name}`, at its checkpoint of update {best.manifest.step:,}"
            )
            how = "KL weight 1 and no auxiliary cost, one posterior sample a sequence"
            if best.history.is_exact:
                how = "The likelihood is exact, as there are no latents"
            normalised = part.data_set.kind.is_normalised
            units = "; densities of samples in normalised units: a bound may be positive" if normalised else ""
            yield f"{who}: {best.choice}. {how}{units}."
            yield table(("", ""), best.bound)
    if part.baselines:
        yield (
            f"Simple models on the same sequences, in the same units, with standard errors over "
            f"{part.data_set.kind.groups or part.data_set.kind.rows}; all give the likelihood itself (`zfdist "
            "baselines`, and `zfdist compare` for differences):"
        )
        head = ["model", *(unit for unit, _ in part.baselines[0][1:])]
        yield table(head, [[value for _, value in row] for row in part.baselines])


def _runs(part: Part) -> Iterator[str]:
    kind, histories = part.data_set.kind, part.histories
    names, is_exact = varied(histories), all(history.is_exact for history in histories)
    sequence = kind.sequences[histories[0].config.data.eval_view]
    head = ["run", *(short(name) for name in names), "state", "updates", "best at"]
    head += ["perplexity"] * (kind.score == "perplexity") + [_bound_name(histories)]
    head += [] if is_exact else [f"KL per {kind.frame}"]
    rows = []
    for history in histories:
        best = history.best
        cells = [f"`{history.name}`", *(history.settings[n] for n in names), history.state, f"{history.step:,}"]
        cells.append(f"{best.step:,}" if best else "")
        if kind.score == "perplexity":
            cells.append(f"{perplexity(best.nats_per_sample):,.2f}" if best else "")
        cells.append(f"{best.elbo_nats:,.1f}" if best else "")
        if not is_exact:
            cells.append(f"{best.kl_nats_per_frame:.3f}" if best and not history.is_exact else "")
        rows.append(cells)
    incomparable = [n for n in names if n in _SCORING]
    if histories[0].best and not incomparable:
        rows[0] = [f"**{cell}**" if cell else "" for cell in rows[0]]
    yield table(head, rows)
    exact = systems_of(history for history in histories if history.is_exact)
    yield (
        f"{_bound_name(histories)}: the best on the validation split, in nats per {sequence}"
        + (" with KL weight 1; KL in nats, at that update. " if not is_exact else ". ")
        + (
            f"That of {_listed(exact)} is the exact log-likelihood, without a KL term. "
            if exact and not is_exact
            else ""
        )
        + "Best first. Stopped runs saw fewer updates than finished ones."
    )
    if incomparable:
        yield f"> These runs differ in {', '.join(incomparable)}: their bounds may not compare, and none is marked."
    yield _figure(part, "sweep", "Validation ELBO over alpha and beta")


_SCORING = ("model.sigma_floor",)


def _kl(histories: Sequence[History]) -> str:
    histories = [history for history in histories if not history.is_exact]
    with_aux = sum(history.has_aux for history in histories)
    text = "KL between posterior and prior in training, running means, as in the paper's Figure 2."
    if 0 < with_aux < len(histories):
        return (
            text + " Without the auxiliary cost the latent variable is free to be ignored; with it, it must tell of b."
        )
    return text + f" All runs with such a term are {'with' if with_aux else 'without'} the auxiliary cost."


def _again(part: Part) -> Iterator[str]:
    history = part.histories[0]
    recipe, differences = _nearest_recipe(history.config)
    flags = "".join(f" \\\n    --{name.replace('_', '-')} {value}" for name, value in differences.items())
    yield "The best run, from the recipe that is nearest to it:" if part.histories[1:] else "From the nearest recipe:"
    yield f"```\nzfdist train {recipe} --name NAME{flags}\n```"
    default = Config().flat()
    rows = [
        (f"`{name}`", f"`{value}`", f"`{default[name]}`")
        for name, value in history.config.flat().items()
        if value != default[name]
    ]
    yield table(("its config", "value", "default"), rows)
    for best in part.bests[:1]:
        manifest = best.manifest
        facts = [
            ("parameters", f"{best.parameters:,}"),
            ("checkpoint at update", f"{manifest.step:,}"),
            ("workers", str(manifest.world_size)),
            ("precision", manifest.precision),
            ("fingerprint of the data", f"`{manifest.data_fingerprint}`"),
            *((f"version of {name}", version) for name, version in manifest.versions.items()),
        ]
        yield table(("", ""), facts)


def _nearest_recipe(config: Config) -> tuple[str, dict[str, object]]:
    """Return the recipe with the fewest differences, and the values that differ."""
    flat = config.flat()
    differences = {
        name: {k: v for k, v in flat.items() if v != base[k]}
        for name, base in ((name, make().flat()) for name, make in RECIPES.items())
    }
    nearest = min(differences, key=lambda name: len(differences[name]))
    return nearest, differences[nearest]


def _figure(part: Part, name: str, text: str) -> str:
    return f"![{text}]({part.figures[name]})" if name in part.figures else ""


def _listed(names: Iterable[str]) -> str:
    """Return e.g. "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
