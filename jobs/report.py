"""Write a report: `zfdist report runs/A [runs/B ...] --out DIR`: report.html, report.md and what it links to.

Needs neither Ray nor DeepSpeed, and goes on a copy of the run folders as well.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import command

if TYPE_CHECKING:
    from jobs.reporting.report_markdown import Best, Part
    from jobs.reporting.run_history import DataSet, History
    from zfdist.evaluation.evaluate import Loaded


@dataclass(frozen=True)
class Arguments:
    """Compare runs in a page with figures, the best run's bound on the test split, and what it generates.

    Runs on different data, or scored on other sequences of the same data, do not compare: each has a part of its own.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders or URIs of runs, and of sweeps for all their trials."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for report.html, one file to open offline and to send; and for report.md, figures/ and samples/."""
    title: str | None = None
    """First line of the page; default: the systems and what the data are."""
    samples: bool = True
    """Generate from the best run of each data set: speech to hear, images, sentences."""
    baselines: bool = True
    """Score simple models beside the best run, on the same sequences."""
    watch: bool = False
    """Serve the page to browsers of this machine, and make it anew while the runs go on; Ctrl-C ends that."""
    port: int = 0
    """With --watch: the port of 127.0.0.1 to serve it at; 0 for any that is free."""
    every: float = 10.0
    """With --watch: seconds between two looks at the runs."""


_LATER = (
    "While runs go on their curves are followed here. What is said of the test split, and what the best one generates, "
    "comes when all are over; `zfdist report` without --watch makes it now."
)


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist report", args=argv)
    if not arguments.runs:
        command.refuse("name at least one run or sweep folder")
    if arguments.watch:
        _watch(arguments)
        return
    page = write(
        arguments.runs, arguments.out, title=arguments.title, samples=arguments.samples, baselines=arguments.baselines
    )
    print(f"written: {page.with_suffix('.html')}, and the same as {page.name}")


def _watch(arguments: Arguments) -> None:
    """Serve the page and keep it fresh until Ctrl-C."""
    from jobs.reporting import live_page, report_html, run_history
    from zfdist.checkpoint import fetch
    from zfdist.errors import ZfdistError

    if not 0 <= arguments.port < 2**16:
        command.refuse(f"--port {arguments.port}: must be between 0 and {2**16 - 1}")
    command.refuse_below(arguments, every=1)

    def news() -> object:
        return run_history.news([fetch.local(run) for run in arguments.runs])

    with live_page.served(arguments.port) as (page, address), contextlib.suppress(KeyboardInterrupt):
        is_served = False
        for _ in live_page.changes(news, arguments.every):
            try:
                written = write(
                    arguments.runs,
                    arguments.out,
                    title=arguments.title,
                    samples=arguments.samples,
                    baselines=arguments.baselines,
                    is_watched=True,
                    say=_in_silence if is_served else command.say,
                )
            except (ZfdistError, OSError) as error:
                if not is_served:
                    raise
                command.say(f"not made anew: {error}")
                continue
            page.show(functools.partial(report_html.page, written.read_text(), arguments.out))
            if not is_served:
                command.say(f"{address} shows the page to this machine alone, and follows the runs; Ctrl-C ends that")
                is_served = True
    command.say(f"no longer followed; the page stays: {arguments.out / 'report.html'}")


def _in_silence(line: str) -> None:
    pass


def write(
    runs: Sequence[Path | str],
    out: Path,
    *,
    title: str | None = None,
    samples: bool = True,
    baselines: bool = True,
    is_watched: bool = False,
    say: Callable[[str], None] = command.say,
) -> Path:
    """Write report.md, figures/ and samples/ into the folder `out`, and all in report.html; return the Markdown page.

    What cannot be had (no checkpoint yet, data elsewhere) is said on the page instead. A page that `is_watched`
    evaluates and generates only once all runs are over, so as to leave the machine to them.

    Raises:
        HistoryError: if one of `runs` is neither a run nor a sweep.
        CheckpointError, StorageError: if one in a store is not there, or the store cannot be used.
    """
    from jobs.reporting import report_html, report_markdown, run_history
    from zfdist import atomic_io
    from zfdist.checkpoint import fetch

    command.check_place(str(out))
    histories = run_history.read([fetch.local(str(run)) for run in runs])
    data_sets = run_history.by_data_set(histories)
    parts = []
    for number, (data_set, some) in enumerate(data_sets.items(), start=1):
        name = str(number) if len(data_sets) > 1 else ""
        part = _drawn(data_set, some, out, name, say)
        if is_watched and any(history.state == "unfinished" for history in some):
            parts.append(dataclasses.replace(part, problems=[_LATER]))
            continue
        parts.append(_with_bests(part, out, name, samples, baselines, say))
    path = out / "report.md"
    page = report_markdown.markdown(title or report_markdown.title(parts), parts)
    page += "".join(_searches([Path(fetch.local(str(run))) for run in runs], out))
    atomic_io.write(path, page)
    atomic_io.write(path.with_suffix(".html"), report_html.page(page, out))
    return path


def _searches(folders: Sequence[Path], out: Path) -> Iterator[str]:
    """Yield the section about each sweep's search: what was tried, what counted, and what it came to."""
    from jobs.reporting import sweep_figures

    for folder in folders:
        swept = sweep_figures.read(folder)
        if swept is not None:
            place = Path("figures") / f"search-{folder.resolve().name}"
            (out / place).mkdir(parents=True, exist_ok=True)
            yield f"\n## The search in {folder.name}\n\n{sweep_figures.write(swept, out, place)}\n"


def _drawn(data_set: "DataSet", histories: "list[History]", out: Path, name: str, say: Callable[[str], None]) -> "Part":
    """Draw the figures of the runs on one data set; `name` is the folder of its part, "" if there is but one."""
    from jobs.reporting import figures, report_markdown, run_history

    say(f"drawing the curves of {len(histories)} run{'s' * (len(histories) > 1)} ...")
    labels, folder, kind = run_history.labels(histories), Path("figures") / name, data_set.kind
    drawn = {"curves": (folder / "learning-curves.png").as_posix()}
    figures.learning_curves(out / drawn["curves"], histories, labels, kind)
    if not all(history.is_exact for history in histories):
        drawn["kl"] = (folder / "kl.png").as_posix()
        figures.kl_curves(out / drawn["kl"], histories, kind)
    is_swept = {"loss.alpha", "loss.beta"} & set(run_history.varied(histories))
    if is_swept and len(run_history.systems_of(histories)) == 1 and histories[0].best:
        drawn["sweep"] = (folder / "sweep.png").as_posix()
        figures.sweep(out / drawn["sweep"], histories, labels, kind)
    return report_markdown.Part(data_set=data_set, histories=histories, figures=drawn)


def _with_bests(
    part: "Part", out: Path, name: str, samples: bool, baselines: bool, say: Callable[[str], None]
) -> "Part":
    """Add the bound of each system's best run on the test split and what it generates, or why they cannot be had."""
    from jobs.reporting import run_history
    from zfdist.errors import ZfdistError

    bests: list[Best] = []
    problems, loaded = [], None
    several = run_history.systems_of(part.histories)[1:]
    for system in run_history.systems_of(part.histories):
        history = next(history for history in part.histories if history.system == system)
        folder = Path(name) / (history.config.model.system if several else "")
        try:
            loaded, best = _loaded(history)
            bests.append(best)
            say(f"evaluating {history.name} on the test split ...")
            bests[-1] = dataclasses.replace(bests[-1], bound=_bound(loaded, say))
            if samples:
                say(f"generating from {history.name} ...")
                bests[-1] = dataclasses.replace(bests[-1], shown=_shown(loaded, out, folder.as_posix()))
        except (ZfdistError, OSError) as error:
            what = "Nothing is generated" if bests and bests[-1].bound else "Not evaluated"
            problems.append(f"{what}: {error}.")
    rows = []
    if baselines and loaded is not None and any(best.bound for best in bests):
        say(f"simple models on {part.data_set.shown} ...")
        try:
            rows = list(_baselines(loaded, say))
        except (ZfdistError, OSError) as error:
            problems.append(f"No simple models: {error}.")
    return dataclasses.replace(part, bests=bests, problems=problems, baselines=rows)


def _baselines(loaded: "Loaded", say: Callable[[str], None]) -> "Iterator[list[tuple[str, str]]]":
    """Yield what the page says of each simple model; keeps their scores beside those of the run."""
    from jobs.reporting import evaluation_table
    from zfdist.evaluation import scores
    from zfdist.evaluation.baseline_scores import baselines
    from zfdist.evaluation.evaluate import data_of

    config = loaded.config
    for one in baselines(data_of(loaded), config.data, "test", config.model.sigma_floor):
        scores.keep(one, loaded.folder, say)
        yield [("model", one.what["model"]), *evaluation_table.baseline_numbers(one)]


def _loaded(history: "History") -> "tuple[Loaded, Best]":
    from jobs.reporting.report_markdown import Best
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.checkpoint import run_folder
    from zfdist.checkpoint.fetch import with_weights
    from zfdist.evaluation.evaluate import load_model

    loaded = load_model(with_weights(history.folder))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    choice = run_folder.choice(history.folder, checkpoint.scores(history.folder))
    return loaded, Best(history=history, manifest=loaded.manifest, choice=choice, parameters=parameters)


def _bound(loaded: "Loaded", say: Callable[[str], None]) -> list[tuple[str, str]]:
    from jobs.reporting import evaluation_table
    from zfdist.evaluation import scores
    from zfdist.evaluation.evaluate import on_split
    from zfdist.evaluation.results import Question

    result, sequences = on_split(loaded, Question(split="test", seeds=[loaded.config.train.seed]))
    scores.keep(sequences, loaded.folder, say)
    return evaluation_table.rows(result)


def _shown(loaded: "Loaded", out: Path, folder: str) -> str:
    """Write what a network generates; return what the page says of it."""
    from jobs.reporting import show
    from zfdist.evaluation.evaluate import data_of

    store = data_of(loaded)
    return "\n\n".join(show.section(out, folder, loaded, store, loaded.config.train.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
