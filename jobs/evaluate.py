"""Evaluate a trained model: `zfdist evaluate runs/N [--bounds elbo,iwae] [--split test] [--json FILE] ...`.

Without --workers it needs neither Ray nor DeepSpeed; it reads no pickles.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import command
from jobs.reporting import evaluation_table

if TYPE_CHECKING:
    from zfdist.config import Config
    from zfdist.data.store import Store
    from zfdist.evaluation.evaluate import Evaluation
    from zfdist.evaluation.results import Question


@dataclass(frozen=True)
class Iwae:
    """The importance-weighted bound."""

    num_samples: int = 25
    """IWAE: trajectories of each sequence (K)."""
    chunk: int = 5
    """IWAE: trajectories at a time; memory grows with this and not with K."""


@dataclass(frozen=True)
class Machines:
    """Where it runs."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Evaluate on so many processes of a Ray cluster; default: in this one, without Ray."""
    address: str | None = None
    """With --workers: a running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray here."""


@dataclass(frozen=True)
class Files:
    """What is written beside the table."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the numbers to this file."""
    export: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write weights (safetensors) and config to this folder, which jobs.evaluate reads as well."""


@dataclass(frozen=True)
class Arguments:
    """Print the bounds of a trained model over a split, and all that must be known to compare them with others.

    Bounds have KL weight 1 and neither auxiliary cost. They depend on the weights, the data, the view and the seed
    only: not on batch size, chunk, machine load or number of workers.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's folder or URI (its best checkpoint by validation ELBO), a checkpoint, or an export."""
    split: str = "test"
    """Which part of the data."""
    bounds: str = "elbo"
    """elbo, or elbo,iwae for the importance-weighted bound as well."""
    seeds: int = 1
    """Evaluate with so many seeds, from --seed on: means with their standard error."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Root of the posterior's noise; default: the run's own seed, as in its validations."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that zfdist prepare wrote, or its URI in a store; default: where the run had it."""
    as_trained: bool = False
    """Read other data under the model's own mean, std and vocabulary: another voice, or another corpus."""
    view: Literal["utterances", "segments"] | None = None
    """What a sequence is; default: as in the run's validations."""
    legacy_denominator: bool = False
    """TIMIT: also divide as the paper's code does, which counts padded rows (1,696 for 1,680 utterances)."""
    importance: tyro.conf.OmitArgPrefixes[Iwae] = Iwae()
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()
    files: tyro.conf.OmitArgPrefixes[Files] = Files()


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist evaluate", args=argv)
    _refuse_mistakes(arguments)
    _evaluate(arguments)


def _refuse_mistakes(arguments: Arguments) -> None:
    command.refuse_below(arguments, seed=0, seeds=1)
    command.refuse_below(arguments.importance, num_samples=1, chunk=1)
    command.refuse_below(arguments.machines, workers=1)
    if arguments.bounds not in ("elbo", "iwae", "elbo,iwae", "iwae,elbo"):
        command.refuse(f"--bounds {arguments.bounds}: must be elbo, or elbo,iwae")
    if arguments.machines.address is not None and arguments.machines.workers is None:
        command.refuse("--address: needs --workers, since without it nothing runs on Ray")


def _evaluate(arguments: Arguments) -> None:
    from zfdist import atomic_io
    from zfdist.checkpoint import export, run_folder
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.checkpoint.fetch import local, with_weights
    from zfdist.evaluation import scores
    from zfdist.evaluation.evaluate import load_model, on_split

    files = arguments.files
    if files.export:  # what cannot be written is said before the work, not after it
        export.refuse_other(files.export)
        command.check_place(str(files.export))
    if files.json:
        command.check_place(str(files.json.parent))
    run = with_weights(local(arguments.model))
    folder = checkpoint.resolve(run)
    given = {"data.root": arguments.data, "data.eval_view": arguments.view, "train.seed": arguments.seed}
    settings = {name: v for name, v in given.items() if v is not None}
    if arguments.machines.workers is None:
        loaded = load_model(folder)
        config = loaded.config.with_values(settings)
        result, sequences = on_split(loaded._replace(config=config), _question(arguments, config))
    else:
        config = checkpoint.read_manifest(folder).config.with_values(settings)
        result, sequences = _on_ray(arguments, folder, config)
    how = ", read under the model's own mean, std and vocabulary" if arguments.as_trained else ""
    command.say(f"{folder} on {config.data.root}{how}")
    if folder != run:
        command.say(run_folder.choice(run, checkpoint.scores(run)))
    command.say("")
    names_and_values = evaluation_table.rows(result)
    width = max(len(name) for name, _ in names_and_values)
    for name, value in names_and_values:
        command.say(f"  {name:<{width}}  {value}")
    kept = scores.keep(sequences, folder, command.say)
    if kept:
        command.say(f"\neach sequence by itself: {kept}")
    if files.json:
        more = {"checkpoint": str(folder), "data": config.data.root, "scores": kept and str(kept)}
        files.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_io.write(files.json, evaluation_table.to_json(result, **more))
        command.say(f"\nwritten to {files.json}")
    if files.export:
        from jobs.reporting import model_card

        card = model_card.markdown(checkpoint.read_manifest(folder), names_and_values, _store(config))
        export.write(folder, files.export)
        atomic_io.write(files.export / export.CARD, card)
        command.say(f"\nexported to {files.export}; evaluate it with: zfdist evaluate {files.export}")


def _store(config: "Config") -> "Store":
    from zfdist.data.store import Store

    return Store.open(config.data.root, verify="size", cache=config.data.cache)


def _question(arguments: Arguments, config: "Config") -> "Question":
    from zfdist.evaluation.bounds import Importance
    from zfdist.evaluation.results import Question

    first = config.train.seed
    return Question(
        split=arguments.split,
        seeds=range(first, first + arguments.seeds),
        importance=Importance(samples=arguments.importance.num_samples, chunk=arguments.importance.chunk)
        if "iwae" in arguments.bounds
        else None,
        with_legacy_denominator=arguments.legacy_denominator,
        as_trained=arguments.as_trained,
    )


def _on_ray(arguments: Arguments, folder: Path, config: "Config") -> "Evaluation":
    command.check_data(config)

    from cluster import session

    with session.connect(arguments.machines.address, say=command.say):
        from cluster.evaluate import measure

        assert arguments.machines.workers is not None
        return measure(
            folder, config, _question(arguments, config), workers=arguments.machines.workers, say=command.say
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
