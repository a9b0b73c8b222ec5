"""Evaluate a trained model: `python -m jobs.evaluate runs/N [--split test] [--json FILE] [--export DIR]`.

Needs neither Ray nor DeepSpeed, and reads no pickles.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs import command

if TYPE_CHECKING:
    from zfdist.evaluate import Loaded, Result


@dataclass(frozen=True)
class Arguments:
    """Print the ELBO of a trained model over a split, and all that must be known to compare it with another.

    The bound has KL weight 1 and neither auxiliary cost. It depends on the weights, the data, the view and the seed
    only: not on batch size, machine load or number of workers.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder (its best checkpoint by validation ELBO), a checkpoint, or an export."""
    split: str = "test"
    """Which part of the data."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Root of the posterior's noise; default: the run's own seed, as in its validations."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that jobs.prepare wrote; default: where the run had it."""
    view: Literal["utterances", "segments"] | None = None
    """What a sequence is; default: as in the run's validations."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the numbers to this file."""
    export: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write weights (safetensors) and config to this folder, which jobs.evaluate reads as well."""


def main(argv: list[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="python -m jobs.evaluate", args=argv)
    if arguments.seed is not None and arguments.seed < 0:
        command.refuse(f"--seed {arguments.seed}: must be 0 or more")
    from zfdist.checkpoint import CheckpointError
    from zfdist.config import ConfigError
    from zfdist.data.store import StoreError
    from zfdist.evaluate import EvaluationError

    try:
        _evaluate(arguments)
    except (CheckpointError, ConfigError, StoreError, EvaluationError) as error:
        command.refuse(str(error))
    except OSError as error:
        command.refuse(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _evaluate(arguments: Arguments) -> None:
    from zfdist import checkpoint
    from zfdist.evaluate import load_model

    folder = checkpoint.resolve(arguments.model)
    loaded = load_model(folder)
    given = {"data.root": arguments.data, "data.eval_view": arguments.view, "train.seed": arguments.seed}
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in given.items() if v is not None}
    config = loaded.config.with_values(settings)
    result = on_split(loaded._replace(config=config), arguments.split)
    print(f"{folder} on {config.data.root}\n")
    names_and_values = rows(result)
    width = max(len(name) for name, _ in names_and_values)
    for name, value in names_and_values:
        print(f"  {name:<{width}}  {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(to_json(result, checkpoint=str(folder), data=config.data.root))
        print(f"\nwritten to {arguments.json}")
    if arguments.export:
        checkpoint.export(folder, arguments.export)
        print(f"\nexported to {arguments.export}; evaluate it with: python -m jobs.evaluate {arguments.export}")


def on_split(loaded: "Loaded", split: str) -> "Result":
    """Return the bound of a loaded model over a split, as its config says; shows progress if it takes long.

    Raises:
        StoreError: if the data is not there or damaged.
        EvaluationError: if model and data do not go together.
    """
    import torch

    from zfdist.data.order import view
    from zfdist.data.store import Store
    from zfdist.evaluate import EvaluationError, evaluate_split

    config = loaded.config
    store = Store.open(Path(config.data.root), verify=config.data.verify)
    if split not in store.splits:
        raise EvaluationError(f"split {split!r}: {config.data.root} has {', '.join(store.splits)}")
    data = config.data
    frames = view(data.eval_view, store.lengths(split), data.frame_samples, data.segment_frames).frames
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _progress(int(frames.sum())) as advance:
        # Evaluation calls the network once a batch, with the scored frames of each row as its third argument.
        hook = loaded.model.register_forward_hook(lambda _module, inputs, _terms: advance(int(inputs[2].sum())))
        try:
            return evaluate_split(loaded, store, split, data=data, seed=config.train.seed, device=device)
        finally:
            hook.remove()


def rows(result: "Result") -> list[tuple[str, str]]:
    """Return the lines of a table: what, and the number with its unit."""
    return [
        ("split", result.split),
        ("a sequence is", {"utterances": "an utterance", "segments": "a segment"}[result.view]),
        ("sequences", f"{result.sequences:,}"),
        ("scored frames", f"{result.frames:,}"),
        ("scored samples", f"{result.samples:,}"),
        ("ELBO per sequence", f"{result.elbo_nats:,.2f} nats (standard error {result.elbo_stderr_nats:,.2f})"),
        ("its reconstruction part", f"{result.log_px_nats:,.2f} nats"),
        ("its KL part", f"{result.kl_nats:,.2f} nats"),
        ("KL per frame", f"{result.kl_nats_per_frame:.4f} nats"),
        ("ELBO per sample", f"{result.nats_per_sample:.5f} nats = {result.bits_per_sample:.5f} bits"),
        ("normalised by mean", f"{result.mean:.6g} (int16 units)"),
        ("normalised by std", f"{result.std:.6g} (int16 units)"),
        ("sigma floor", f"{result.sigma_floor:g} (normalised units)"),
        ("checkpoint at step", f"{result.step:,}"),
        ("seed of the noise", str(result.seed)),
    ]


def to_json(result: "Result", **more: Any) -> str:
    """Return all fields of a result, and `more`, as indented JSON; a number that does not exist is null."""
    import json

    known = {name: None if value != value else value for name, value in vars(result).items()}
    return json.dumps(known | more, indent=2) + "\n"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show, on stderr and not before a second has passed, the share of `total` frames done and the time left."""
    begun = latest = time.monotonic()
    done = 0
    on_terminal = sys.stderr.isatty()

    def advance(frames: int) -> None:
        nonlocal done, latest
        done += frames
        now = time.monotonic()
        if now - latest < (1 if on_terminal else 10) or done >= total:
            return
        latest = now
        left_s = (now - begun) * (total - done) / done
        line = f"{done:,} of {total:,} frames, {100 * done / total:.0f} %, {left_s:.0f} s left"
        print(f"\r{line:<72}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    yield advance
    if on_terminal and latest != begun:
        print(f"\r{'':<72}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
