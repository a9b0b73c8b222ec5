"""Generate from a model: `zfdist generate runs/N --what samples --out DIR`, or continuations ...

Speech becomes WAV files with pictures of waveform and spectrogram, images a grid, sentences lines of text. Needs
neither Ray nor DeepSpeed.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import command

if TYPE_CHECKING:
    from jobs.reporting.draw_samples import Request
    from zfdist.data.store import Store
    from zfdist.evaluation.evaluate import Loaded


@dataclass(frozen=True)
class Size:
    """How many sequences, and how long."""

    num: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Sequences; default: 8 (an interpolation has two)."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Length of what is new, in frames, pixels or words; default: 3 s, the rest of the image, 20 words."""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """The same in seconds, for sound."""
    prefix_frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """What a continuation begins with, in frames, pixels or words; default: 1 s, half an image, 3 words."""


@dataclass(frozen=True)
class Noise:
    """How what is drawn varies."""

    temperature_z: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Scale of the latents' standard deviation, of samples and continuations; default 1; 0 takes means."""
    temperature_x: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """The same of the observations given the latents, of all but reconstructions; default 1; 0 takes the likeliest."""
    unknown: bool = True
    """Sentences: whether <unk> may be written; --no-unknown leaves it out, as Table 3 does."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Of all noise; default 0. Reconstructions have none."""


@dataclass(frozen=True)
class Given:
    """The data that sequences to go on from, rebuild or mix are taken from."""

    split: str | None = None
    """Which part of the data; default: test."""
    between: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="INT INT")] = None
    """Interpolation: numbers of the two sequences in the split; default: its first two."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that zfdist prepare wrote, or its URI in a store; default: where the run had it."""
    as_trained: bool = False
    """Read other data under the model's own mean, std and vocabulary: another voice, or another corpus."""


@dataclass(frozen=True)
class Arguments:
    """Let a trained network speak, draw or write; the same command gives the same files."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's folder or URI (its best checkpoint by validation ELBO), a checkpoint, or an export."""
    what: Literal["samples", "continuations", "reconstructions", "interpolation"]
    """From the prior; going on from a prefix; rebuilt from their latents; between two sequences (Table 3)."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the files, and for generated.json, which says what they are."""
    size: tyro.conf.OmitArgPrefixes[Size] = Size()
    noise: tyro.conf.OmitArgPrefixes[Noise] = Noise()
    given: tyro.conf.OmitArgPrefixes[Given] = Given()


_FOR = {
    "num": ("samples", "continuations", "reconstructions"),
    "prefix_frames": ("continuations",),
    "between": ("interpolation",),
    "temperature_z": ("samples", "continuations"),
    "temperature_x": ("samples", "continuations", "interpolation"),
    "split": ("continuations", "reconstructions", "interpolation"),
    "seed": ("samples", "continuations", "interpolation"),
}
"""What flags are for that are not for all."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist generate", args=argv)
    _refuse_mistakes(arguments)
    print("\n".join(f"written: {path}" for path in _generate(arguments)))


def _refuse_mistakes(arguments: Arguments) -> None:
    size, noise, given = arguments.size, arguments.noise, arguments.given
    command.refuse_below(size, num=1, frames=1, prefix_frames=1)
    command.refuse_below(noise, temperature_z=0, temperature_x=0, seed=0)
    if size.seconds is not None and not size.seconds > 0:
        command.refuse(f"--seconds {size.seconds}: must be more than 0")
    if size.seconds is not None and size.frames is not None:
        command.refuse("--seconds and --frames: give one of them")
    if given.between is not None and min(given.between) < 0:
        command.refuse("--between: must be two sequences of the split, counted from 0")
    values = vars(size) | vars(noise) | vars(given)
    for name, whats in _FOR.items():
        if values[name] is not None and arguments.what not in whats:
            command.refuse(f"{command.flag(name)}: changes nothing of {arguments.what}; it is for {', '.join(whats)}")
    if arguments.what == "interpolation" and noise.temperature_x == 0:
        command.refuse("--temperature-x 0: is the greedy half of an interpolation, which is always made; leave it out")


def _generate(arguments: Arguments) -> list[Path]:
    from jobs.reporting import draw_samples, show
    from zfdist import atomic_io
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.checkpoint.fetch import local, with_weights
    from zfdist.evaluation.evaluate import data_of, load_model, refuse_other_data

    command.check_place(str(arguments.out))
    folder = checkpoint.resolve(with_weights(local(arguments.model)))
    loaded = load_model(folder)
    moved = {} if arguments.given.data is None else {"data.root": arguments.given.data}
    loaded = loaded._replace(config=loaded.config.with_values(moved))
    store = data_of(loaded, arguments.given.as_trained)
    request = _request(arguments, loaded, store)
    refuse_other_data(loaded, store, request.split)
    made = draw_samples.pieces(loaded, store, request)
    files = show.write(arguments.out, made, loaded, store)
    record = {"checkpoint": str(folder), "data": str(store.root), **dataclasses.asdict(request)}
    record["pieces"] = [{"name": piece.name, "title": piece.title, "frames": len(piece.values_TX)} for piece in made]
    path = arguments.out / "generated.json"
    atomic_io.write_json(path, record)
    return [*files, path]


def _request(arguments: Arguments, loaded: "Loaded", store: "Store") -> "Request":
    """Fill in what the command line leaves open, as the kind of data has it; refuses what says nothing of these."""
    from jobs.reporting.draw_samples import Request, usual_frames

    data, model = loaded.config.data, loaded.config.model
    size, noise, given = arguments.size, arguments.noise, arguments.given
    if size.seconds is not None and not store.sample_rate:
        command.refuse(f"--seconds: {data.root} holds {store.kind.name}, no sound; use --frames")
    if not noise.unknown and not store.kind.has_vocabulary:
        command.refuse(f"--no-unknown: {data.root} holds {store.kind.name}, which have no words")
    if noise.temperature_z is not None and not loaded.model.has_latents:
        command.refuse(f"--temperature-z: an {model.system} has no latents")
    prefix, new = usual_frames(store, data, arguments.what, size.prefix_frames)
    if size.seconds is not None:
        new = max(1, round(size.seconds * store.sample_rate / data.frame_samples))
    return Request(
        what=arguments.what,
        split=given.split or "test",
        num=size.num or (2 if arguments.what == "interpolation" else 8),
        frames=size.frames or new,
        prefix_frames=prefix,
        between=given.between,
        temperature_z=1.0 if noise.temperature_z is None else noise.temperature_z,
        temperature_x=1.0 if noise.temperature_x is None else noise.temperature_x,
        with_unknown=noise.unknown,
        seed=noise.seed or 0,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
