"""Generate from a model: `python -m jobs.generate runs/N --what samples --out DIR`, or continuations ...

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
    from zfdist.config import Config
    from zfdist.data.store import Store


@dataclass(frozen=True)
class Arguments:
    """Let a trained network speak, draw or write; the same command gives the same files."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's folder or URI (its best checkpoint by validation ELBO), a checkpoint, or an export."""
    what: Literal["samples", "continuations", "reconstructions", "interpolation"]
    """From the prior; going on from a prefix; rebuilt from their latents; between two sequences (Table 3)."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the files, and for generated.json, which says what they are."""
    num: int = 8
    """Sequences (an interpolation has two)."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Length of what is new, in frames, pixels or words; default: 3 s, the rest of the image, 20 words."""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """The same in seconds, for sound."""
    prefix_frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """What a continuation begins with, in frames, pixels or words; default: 1 s, half an image, 3 words."""
    between: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="INT INT")] = None
    """Interpolation: numbers of the two sequences in the split; default: its first two."""
    temperature_z: float = 1.0
    """Scale of the latents' standard deviation, of samples and continuations; 0 takes means."""
    temperature_x: float = 1.0
    """The same of the observations given the latents; 0 takes the likeliest."""
    unknown: bool = True
    """Sentences: whether <unk> may be written; --no-unknown leaves it out, as Table 3 does."""
    split: str = "test"
    """Where sequences to go on from, rebuild or mix are taken from."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that jobs.prepare wrote, or its URI in a store; default: where the run had it."""
    as_trained: bool = False
    """Read other data under the model's own mean, std and vocabulary: another voice, or another corpus."""
    seed: int = 0
    """Of all noise."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="python -m jobs.generate", args=argv)
    _refuse_mistakes(arguments)
    print("\n".join(f"written: {path}" for path in _generate(arguments)))


def _refuse_mistakes(arguments: Arguments) -> None:
    command.refuse_below(arguments, num=1, frames=1, prefix_frames=1, temperature_z=0, temperature_x=0, seed=0)
    if arguments.seconds is not None and not arguments.seconds > 0:
        command.refuse(f"--seconds {arguments.seconds}: must be more than 0")
    if arguments.seconds is not None and arguments.frames is not None:
        command.refuse("--seconds and --frames: give one of them")
    if arguments.between is not None and (arguments.what != "interpolation" or min(arguments.between) < 0):
        command.refuse("--between: must be two sequences of the split, and belongs to --what interpolation")


def _generate(arguments: Arguments) -> list[Path]:
    from jobs.reporting import draw_samples, write_samples
    from zfdist import atomic_io
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.checkpoint.fetch import local, with_weights
    from zfdist.evaluation.evaluate import data_of, load_model, refuse_other_data

    command.check_place(str(arguments.out))
    folder = checkpoint.resolve(with_weights(local(arguments.model)))
    loaded = load_model(folder)
    moved = {} if arguments.data is None else {"data.root": arguments.data}
    loaded = loaded._replace(config=loaded.config.with_values(moved))
    store = data_of(loaded, arguments.as_trained)
    refuse_other_data(loaded, store, arguments.split)
    request = _request(arguments, loaded.config, store)
    made = draw_samples.pieces(loaded, store, request)
    files = write_samples.write(arguments.out, made, loaded, store)
    record = {"checkpoint": str(folder), "data": str(store.root), **dataclasses.asdict(request)}
    record["pieces"] = [{"name": piece.name, "title": piece.title, "frames": len(piece.values_TX)} for piece in made]
    path = arguments.out / "generated.json"
    atomic_io.write_json(path, record)
    return [*files, path]


def _request(arguments: Arguments, config: "Config", store: "Store") -> "Request":
    """Fill in the lengths that the command line leaves open, as the kind of data has it."""
    from jobs.reporting.draw_samples import Request

    per_second = store.sample_rate / config.data.frame_samples
    if arguments.seconds is not None and not per_second:
        command.refuse(f"--seconds: {config.data.root} holds {store.kind.name}, no sound; use --frames")
    heard = {"pcm16": round(per_second), "bits": 392, "tokens": 3}[store.kind.name]
    prefix = arguments.prefix_frames or max(heard, 1)
    is_whole = store.kind.name == "bits" and arguments.what != "continuations"
    usual = {"pcm16": round(3 * per_second), "bits": 784 if is_whole else max(784 - prefix, 1), "tokens": 20}
    wanted = None if arguments.seconds is None else max(1, round(arguments.seconds * per_second))
    return Request(
        what=arguments.what,
        split=arguments.split,
        num=arguments.num,
        frames=arguments.frames or wanted or max(usual[store.kind.name], 1),
        prefix_frames=prefix,
        between=arguments.between,
        temperature_z=arguments.temperature_z,
        temperature_x=arguments.temperature_x,
        with_unknown=arguments.unknown,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
