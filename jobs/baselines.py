"""Simple models beside ours: `zfdist baselines DATA [--out DIR]`: what counting, EM or linear prediction score.

Needs neither Ray nor DeepSpeed. The scores of single sequences are written, for `zfdist compare`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.cli import command
from zfdist.config import Config, DataConfig, ModelConfig


@dataclass(frozen=True)
class Arguments:
    """Fit simple models to the training split, and score another on the sequences, and in the units, of ours.

    Words: a unigram, and the interpolated Kneser-Ney trigram. Digits: a product of Bernoullis, and a mixture of 50
    such products. Sound: the variance of the previous frame, and linear prediction from 16 samples, refitted to the
    past at every frame. All are likelihoods themselves.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder that zfdist prepare wrote, its URI, or a run, for its data, frames and sequences."""
    split: str = "test"
    """Which part of the data is scored."""
    frame_samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Samples of a frame of sound; the first frame of a sequence is not scored; default: the run's, else 200."""
    view: Literal["utterances", "segments"] | None = None
    """What a sequence is; default: the run's, else utterances."""
    segment_frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Scored frames of a segment; default: the run's, else 40."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the scores; default: baselines/ and the name of the data."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist baselines", args=argv)
    command.refuse_below(arguments, frame_samples=1, segment_frames=1)
    config = _config(arguments)
    out = arguments.out or Path("baselines") / Path(config.data.root.partition("?")[0]).name
    command.check_place(str(out))

    from jobs.reporting import evaluation_table
    from zfdist.data.store import Store
    from zfdist.evaluation import scores
    from zfdist.evaluation.baseline_scores import baselines

    store = Store.open(config.data.root, verify=config.data.verify, cache=config.data.cache)
    found = 0
    for one in baselines(store, config.data, arguments.split, config.model.sigma_floor):
        command.say(f"{evaluation_table.baseline(one)}\n  each sequence by itself: {scores.write(one, out)}")
        found += 1
    if not found:
        command.refuse(f"{config.data.root} holds {store.kind.name}, for which there is no simple model")


def _config(arguments: Arguments) -> Config:
    """Return where the data are and how they are cut, in the config of a run or in one of defaults."""
    from zfdist.checkpoint import run_folder
    from zfdist.checkpoint.fetch import local
    from zfdist.data.store import Store
    from zfdist.errors import ZfdistError

    given = {name: getattr(arguments, name) for name in ("frame_samples", "segment_frames")}
    values = {f"data.{name}": value for name, value in given.items() if value is not None}
    values |= {"data.eval_view": arguments.view} if arguments.view else {}
    if not (Path(arguments.data) / "manifest.json").is_file():
        try:
            config = run_folder.config_of(local(arguments.data))
        except ZfdistError:
            config = None
        if config is not None:
            return config.with_values(values)
    samples = Store.open(arguments.data, verify="size").kind.frame_samples or DataConfig.frame_samples
    config = Config(data=DataConfig(root=arguments.data, frame_samples=samples), model=ModelConfig())
    return config.with_values(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
