"""An export: the weights of a checkpoint with its manifest and config, all that evaluation needs, free of pickles."""

import dataclasses
import os
import shutil
from pathlib import Path

from zfdist import atomic_io
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CONFIG, MANIFEST, WEIGHTS, WORDS, CheckpointError

CARD = "README.md"
"""The page beside an export that says what it is."""


def write(folder: Path, out: Path) -> None:
    """Copy the weights, manifest and config of a checkpoint: all that evaluation needs, free of pickles.

    Raises:
        CheckpointError: if the checkpoint is damaged, or `out` holds something else than an export.
    """
    refuse_other(out)
    manifest = checkpoint.verify(folder, only=WEIGHTS)
    files = {name: manifest.files[name] for name in (WEIGHTS, WORDS) if name in manifest.files}
    slim = dataclasses.replace(manifest, files=files, progress={})
    out.mkdir(parents=True, exist_ok=True)
    for name in files:
        with atomic_io.replacing(out / name) as fresh:
            shutil.copyfile(folder / name, fresh)
    atomic_io.write(out / CONFIG, manifest.config.to_json())
    atomic_io.write(out / MANIFEST, checkpoint.to_json(slim))


def refuse_other(out: Path) -> None:
    """Raise CheckpointError if a folder holds something else than an export, e.g. a run or a checkpoint."""
    try:
        names = {name for name in os.listdir(out) if not name.endswith(atomic_io.SUFFIX)}
    except FileNotFoundError:
        return
    if names - {WEIGHTS, WORDS, CONFIG, MANIFEST, CARD, "scores"}:  # of its sequences, once it was evaluated
        raise CheckpointError(f"{out}: holds something else than an export; choose another folder for it")
