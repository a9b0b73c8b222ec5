"""Write a report: `python -m jobs.report runs/A [runs/B ...] --out DIR`: report.md, figures and sounds.

Needs neither Ray nor DeepSpeed, and goes on a copy of the run folders as well.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import command

if TYPE_CHECKING:
    from jobs.reporting.report_markdown import Page
    from zfdist.evaluation.evaluate import Loaded


@dataclass(frozen=True)
class Arguments:
    """Compare runs in a page with figures, the best run's bound on the test split, and speech to listen to."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders or URIs of runs, and of sweeps for all their trials."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for report.md, figures/ and samples/."""
    title: str = "Z-Forcing on speech"
    """First line of the page."""
    samples: bool = True
    """Generate and rebuild a few seconds of speech."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="python -m jobs.report", args=argv)
    if not arguments.runs:
        command.refuse("name at least one run or sweep folder")
    page = write(arguments.runs, arguments.out, title=arguments.title, samples=arguments.samples)
    print(f"written: {page}")


def write(
    runs: Sequence[Path | str], out: Path, *, title: str, samples: bool = True, say: Callable[[str], None] = command.say
) -> Path:
    """Write report.md, figures/ and samples/ into the folder `out`; return the page.

    What cannot be had (no checkpoint yet, data elsewhere) is said on the page instead.

    Raises:
        HistoryError: if one of `runs` is neither a run nor a sweep.
        CheckpointError, StorageError: if one in a store is not there, or the store cannot be used.
    """
    from jobs.reporting import figures, report_markdown, run_history
    from zfdist import atomic_io
    from zfdist.checkpoint import fetch

    command.check_place(str(out))
    histories = run_history.read([fetch.local(str(run)) for run in runs])
    say(f"drawing the curves of {len(histories)} run{'s' * (len(histories) > 1)} ...")
    labels = run_history.labels(histories)
    drawn = {"curves": "figures/learning-curves.png", "kl": "figures/kl.png"}
    figures.learning_curves(out / drawn["curves"], histories, labels)
    figures.kl_curves(out / drawn["kl"], histories)
    if {"loss.alpha", "loss.beta"} & set(run_history.varied(histories)) and histories[0].best:
        drawn["sweep"] = "figures/sweep.png"
        figures.sweep(out / drawn["sweep"], histories, labels)
    content = report_markdown.Page(title=title, histories=histories, best=None, figures=drawn)
    path = out / "report.md"
    atomic_io.write(path, report_markdown.markdown(_with_best(content, out, samples, say)))
    return path


def _with_best(content: "Page", out: Path, samples: bool, say: Callable[[str], None]) -> "Page":
    """Add the best run's bound on the test split, and its speech, or why they cannot be had."""
    import dataclasses

    from jobs.reporting import evaluation_table, report_markdown
    from zfdist.checkpoint.fetch import with_weights
    from zfdist.errors import ZfdistError
    from zfdist.evaluation.evaluate import load_model, on_split
    from zfdist.evaluation.results import Question

    history = content.histories[0]
    try:
        loaded = load_model(with_weights(history.folder))
    except ZfdistError as error:
        return dataclasses.replace(content, problem=f"Not evaluated: {error}.")
    parameters = sum(p.numel() for p in loaded.model.parameters())
    best = report_markdown.Best(history=history, manifest=loaded.manifest, parameters=parameters)
    try:
        say(f"evaluating {history.name} on the test split ...")
        asked = Question(split="test", seeds=[loaded.config.train.seed])
        bound = evaluation_table.rows(on_split(loaded, asked))
        content = dataclasses.replace(content, best=dataclasses.replace(best, bound=bound))
        return _with_speech(content, loaded, out, say) if samples else content
    except ZfdistError as error:
        return dataclasses.replace(content, best=best, problem=f"Not evaluated: {error}.")


def _with_speech(content: "Page", loaded: "Loaded", out: Path, say: Callable[[str], None]) -> "Page":
    import dataclasses

    from jobs.reporting import audio, figures
    from zfdist.data.store import Store

    say("generating speech ...")
    store = Store.open(loaded.config.data.root, verify=loaded.config.data.verify, cache=loaded.config.data.cache)
    sounds = audio.speech(loaded, store, "test", loaded.config.train.seed)
    files = [path.relative_to(out).as_posix() for path in audio.write(out / "samples", sounds, store.sample_rate)]
    drawn = {**content.figures, "speech": "figures/speech.png"}
    figures.speech(out / drawn["speech"], {s.title: s.wave for s in sounds}, store.sample_rate)
    rows = [
        (file, s.title, s.what, f"{len(s.wave) / store.sample_rate:.2f}", f"{s.clipped_percent:.2g} %")
        for file, s in zip(files, sounds, strict=True)
    ]
    return dataclasses.replace(content, figures=drawn, sounds=rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
