"""Compare runs with errors: `zfdist compare RUN RUN ... [--out DIR]`: paired differences over the same test sequences.

Needs neither Ray nor DeepSpeed. What was evaluated before is read from the runs' scores, the rest is computed.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import command

if TYPE_CHECKING:
    from zfdist.evaluation.scores import Scores


@dataclass(frozen=True)
class Arguments:
    """Compare the bounds of runs on the same sequences: each less the best, with errors.

    Runs that differ in train.seed alone count as one configuration, and have an error over training seeds as well.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders or URIs of runs and sweeps, checkpoints, exports, or files of scores (of baselines, for example)."""
    split: str = "test"
    """Which part of the data."""
    bound: Literal["elbo", "iwae"] = "elbo"
    """Which bound on log p(x)."""
    num_samples: int = 25
    """Of iwae: trajectories of each sequence."""
    seeds: int = 1
    """Evaluate with so many seeds of the noise, from the run's own on."""
    as_trained: bool = False
    """Read other data than a model's own under its mean, std and vocabulary."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for compare.md, compare.csv (every pair) and compare.png."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist compare", args=argv)
    command.refuse_below(arguments, num_samples=1, seeds=1)
    if arguments.out:
        command.check_place(str(arguments.out))
    from jobs.reporting import comparison
    from zfdist.evaluation import compare

    named = dict(_scores(arguments))
    if len(named) < 2:
        command.refuse("name two runs or more: there is nothing to compare with")
    found = compare.sides(named, arguments.bound)
    command.say("\n".join(comparison.lines(found, arguments.bound)))
    if arguments.out:
        for path in comparison.write(arguments.out, found, arguments.bound):
            command.say(f"written: {path}")


def _scores(arguments: Arguments) -> "Iterator[tuple[str, Scores]]":
    """Yield the scores of what is named, by the shortest names that tell them apart."""
    places = [place for named in arguments.runs for place in _places(named)]
    if twice := [path for i, path in enumerate(places) if path.resolve() in {p.resolve() for p in places[:i]}]:
        command.refuse(f"{twice[0]} is named twice")
    for place, name in zip(places, _names(places), strict=True):
        if not _is_file(place):
            yield name, _evaluated(place, name, arguments)
            continue
        found = _read(place)
        yield name if found.config else found.what["model"], found


def _places(named: str) -> list[Path]:
    """Return a run, or the trials of a sweep."""
    if named.endswith((".csv", ".json")):
        return [Path(named)]
    from zfdist.checkpoint.fetch import local

    path = local(named)
    trials = sorted((path / "trials").glob("*")) if (path / "trials").is_dir() else []
    return [trial for trial in trials if (trial / "checkpoints").is_dir()] or [path]


def _names(places: Sequence[Path]) -> list[str]:
    parts = 1
    while parts < 4 and len({place.parts[-parts:] for place in places}) < len(places):
        parts += 1
    return [
        str(Path(*place.parts[-parts:]).with_suffix("") if _is_file(place) else Path(*place.parts[-parts:]))
        for place in places
    ]


def _is_file(place: Path) -> bool:
    return place.suffix in (".csv", ".json")


def _read(path: Path) -> "Scores":
    from zfdist.evaluation import scores

    return scores.read(path)


def _evaluated(place: Path, name: str, arguments: Arguments) -> "Scores":
    from zfdist.checkpoint.fetch import with_weights
    from zfdist.evaluation import scores
    from zfdist.evaluation.bounds import Importance
    from zfdist.evaluation.evaluate import data_of, load_model, on_split, what_of
    from zfdist.evaluation.results import Question

    loaded = load_model(with_weights(place))
    first = loaded.config.train.seed
    question = Question(
        split=arguments.split,
        seeds=range(first, first + arguments.seeds),
        importance=Importance(samples=arguments.num_samples) if arguments.bound == "iwae" else None,
        as_trained=arguments.as_trained,
    )
    what = what_of(loaded, data_of(loaded, question.as_trained), question)
    kept = scores.kept(scores.folder_for(loaded.folder), what)
    if kept is not None:
        return kept
    command.say(f"evaluating {name} on the {arguments.split} split ...")
    found = on_split(loaded, question).scores
    scores.keep(found, loaded.folder, command.say)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
