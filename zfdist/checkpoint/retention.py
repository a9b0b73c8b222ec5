"""Which checkpoints of a run stay: the last, the best, and every n-th."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from zfdist.checkpoint import folder as checkpoint
from zfdist.config import CheckpointConfig


def prune(run_folder: Path, config: CheckpointConfig) -> None:
    """Delete checkpoints that the config does not keep: last, best, and every n-th stay; on one worker only."""
    scores = checkpoint.scores(run_folder)
    for step in scores.keys() - kept(scores, config):
        doomed = checkpoint.folder_of(run_folder, step)
        aside = doomed.with_suffix(".partial")  # a crash in mid-deletion leaves no half checkpoint under a final name
        doomed.rename(aside)
        shutil.rmtree(aside)


def kept(scores: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Return the steps whose checkpoints stay, from all of them with their validation ELBO."""
    keep = set(sorted(scores)[-config.keep_last :]) | set(checkpoint.ranked(scores)[: config.keep_best])
    if config.keep_every_steps:
        keep |= {step for step in scores if step % config.keep_every_steps == 0}
    return keep


def is_among_best(step: int, elbo_nats: float, scores: Mapping[int, float | None], config: CheckpointConfig) -> bool:
    """Return whether a validation is one of the best that the config keeps, beside the checkpoints that are there."""
    return step in checkpoint.ranked({**scores, step: elbo_nats})[: config.keep_best]
