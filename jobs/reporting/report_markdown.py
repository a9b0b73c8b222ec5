"""The text of a report, as Markdown that GitHub shows well; links are relative to its folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.recipes import RECIPES
from jobs.reporting.run_history import History, short, varied
from zfdist.checkpoint.folder import CheckpointManifest
from zfdist.config import Config


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best run's checkpoint, evaluated."""

    history: History
    manifest: CheckpointManifest
    parameters: int
    """Numbers that were trained."""
    bound: Sequence[tuple[str, str]] = ()
    """Names and values of its evaluation; empty if it could not be made."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a report says."""

    title: str
    histories: Sequence[History]
    """The best validation ELBO first."""
    best: Best | None
    figures: Mapping[str, str]
    """Paths relative to the page by name: curves, kl, sweep, speech."""
    problem: str = ""
    """Why there is no evaluation, or no sounds."""
    sounds: Sequence[tuple[str, ...]] = ()
    """File, title, what one hears, seconds, and percent of samples at the limits of int16."""


def markdown(page: Page) -> str:
    """Return the whole report."""
    parts = [f"# {page.title}", _summary(page)]
    parts += ["## The bound", *_bound(page)]
    if len(page.histories) > 1:
        parts += ["## All runs", *_runs(page)]
    parts += ["## Learning curves", _figure(page, "curves", "ELBO per sequence over updates"), _CURVES]
    parts += ["## The KL term", _figure(page, "kl", "KL per frame over updates"), _kl(page.histories)]
    if page.sounds:
        parts += ["## Listen", *_listen(page)]
    parts += ["## How to do it again", *_again(page)]
    return "\n\n".join(part for part in parts if part) + "\n"


_CURVES = (
    "Training: the bound on training sequences, means over the updates between two log lines (thin) and their running "
    "mean (thick). Validation: the bound on the validation split. Both have KL weight 1 and no auxiliary cost; where "
    "they differ in what a sequence is, their levels do not compare. The lowest twentieth of the values lies below "
    "the axes."
)


def _summary(page: Page) -> str:
    best = page.histories[0]
    runs = "One run" if len(page.histories) == 1 else f"{len(page.histories)} runs"
    if best.best is None:
        return f"{runs} of Z-Forcing; none was validated yet."
    score = f"{best.best.elbo_nats:,.1f} nats per sequence at update {best.best.step:,}"
    kl = f"{best.best.kl_nats_per_frame:.2f} nats of KL per frame"
    named = f"`{best.name}`" if len(page.histories) == 1 else f"the best is `{best.name}`"
    return f"{runs} of Z-Forcing; {named}: validation ELBO {score}, {kl}."


def _bound(page: Page) -> Iterator[str]:
    if page.problem:
        yield f"> {page.problem}"
    if page.best and page.best.bound:
        yield (
            f"`{page.best.history.name}`, at its checkpoint with the best validation ELBO. KL weight 1 and no "
            "auxiliary cost, one posterior sample a sequence; densities of samples in normalised units: a bound "
            "may be positive."
        )
        yield _table(("", ""), page.best.bound)


def _runs(page: Page) -> Iterator[str]:
    names = varied(page.histories)
    head = ("run", *(short(name) for name in names), "state", "updates", "best at", "ELBO", "KL per frame")
    rows = []
    for history in page.histories:
        at, elbo, kl = "", "", ""
        if history.best:
            at = f"{history.best.step:,}"
            elbo, kl = f"{history.best.elbo_nats:,.1f}", f"{history.best.kl_nats_per_frame:.3f}"
        values = (history.settings[name] for name in names)
        rows.append((f"`{history.name}`", *values, history.state, f"{history.step:,}", at, elbo, kl))
    rows[0] = tuple(f"**{cell}**" if cell else "" for cell in rows[0])
    yield _table(head, rows)
    yield (
        "ELBO: the best on the validation split, in nats per sequence with KL weight 1; KL per frame in nats, at that "
        "update. Sorted by ELBO. Stopped runs saw fewer updates than finished ones."
    )
    incomparable = [n for n in names if n in _SCORING]
    if incomparable:
        yield f"> These runs differ in {', '.join(incomparable)}: their bounds may not compare."
    yield _figure(page, "sweep", "Validation ELBO over alpha and beta")


_SCORING = ("data.root", "data.frame_samples", "data.eval_view", "data.segment_frames", "model.sigma_floor")


def _kl(histories: Sequence[History]) -> str:
    with_aux = sum(h.config.loss.alpha > 0 for h in histories)
    text = "KL between posterior and prior in training, running means, as in the paper's Figure 2."
    if 0 < with_aux < len(histories):
        return (
            text + " Without the auxiliary cost the latent variable is free to be ignored; with it, it must tell of b."
        )
    return text + f" All runs here are {'with' if with_aux else 'without'} the auxiliary cost."


def _listen(page: Page) -> Iterator[str]:
    head = ("sound", "what it is", "seconds", "clipped")
    yield _table(
        head, [(f"[{title}]({file})", what, length, clipped) for file, title, what, length, clipped in page.sounds]
    )
    yield _figure(page, "speech", "Waveforms and spectrograms")


def _again(page: Page) -> Iterator[str]:
    history = page.histories[0]
    recipe, differences = _nearest_recipe(history.config)
    flags = "".join(f" \\\n    --{name.replace('_', '-')} {value}" for name, value in differences.items())
    yield "The best run, from the recipe that is nearest to it:"
    yield f"```\npython -m jobs.train {recipe} --name NAME{flags}\n```"
    default = Config().flat()
    rows = [
        (f"`{name}`", f"`{value}`", f"`{default[name]}`")
        for name, value in history.config.flat().items()
        if value != default[name]
    ]
    yield _table(("config of the best run", "value", "default"), rows)
    if page.best:
        manifest = page.best.manifest
        facts = [
            ("parameters", f"{page.best.parameters:,}"),
            ("checkpoint at update", f"{manifest.step:,}"),
            ("workers", str(manifest.world_size)),
            ("precision", manifest.precision),
            ("fingerprint of the data", f"`{manifest.data_fingerprint}`"),
            *((f"version of {name}", version) for name, version in manifest.versions.items()),
        ]
        yield _table(("", ""), facts)


def _nearest_recipe(config: Config) -> tuple[str, dict[str, object]]:
    """Return the recipe with the fewest differences, and the values that differ."""
    flat = config.flat()
    differences = {
        name: {k: v for k, v in flat.items() if v != base[k]}
        for name, base in ((name, make().flat()) for name, make in RECIPES.items())
    }
    nearest = min(differences, key=lambda name: len(differences[name]))
    return nearest, differences[nearest]


def _figure(page: Page, name: str, text: str) -> str:
    return f"![{text}]({page.figures[name]})" if name in page.figures else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
