"""Pieces that a network generated, as files: WAV with a picture, a grid of images, or lines of text."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from jobs.reporting import audio, figures
from jobs.reporting.draw_samples import Piece
from zfdist import atomic_io
from zfdist.data.kinds import BITS, END, TOKENS
from zfdist.data.store import Store
from zfdist.evaluation import generate
from zfdist.evaluation.evaluate import Loaded

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLUMNS_OF_SOUND = 4
_SIDE = 28


def write(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> list[Path]:
    """Write all pieces into the folder `out`; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    if store.kind == TOKENS:
        path = out / "sentences.txt"
        atomic_io.write(path, "".join(f"{piece.title:<14} {text(piece, store.vocabulary())}\n" for piece in made))
        return [path]
    if store.kind == BITS:
        image_grid(out / "images.png", made)
        return [out / "images.png"]
    return _sound(out, made, loaded, store)


def text(piece: Piece, words: Sequence[str]) -> str:
    """Return a sentence up to its `</s>`."""
    return " ".join(words[token] for token in itertools.takewhile(lambda token: token != END, piece.values_TX.tolist()))


def image_grid(path: Path, made: Sequence[Piece]) -> None:
    """Draw binary images of 28 by 28 pixels; what a piece has not of them is white."""
    rows = [list(row) for _, row in itertools.groupby(made, key=lambda piece: piece.row)]
    columns = max(len(row) for row in rows)
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(0.75 * columns, 0.95 * len(rows)), dpi=200, squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, line in zip(rows, grid, strict=True):
        for piece, axes in zip(row, line, strict=False):
            pixels = np.zeros(_SIDE * _SIDE)
            values = piece.values_TX.flatten().numpy()[: pixels.size]
            pixels[: values.size] = values
            axes.imshow(pixels.reshape(_SIDE, _SIDE), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(piece.title, fontsize=5, pad=2)
    with atomic_io.replacing(path) as fresh:
        figure.savefig(fresh, format="png")
    plt.close(figure)


def _sound(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> list[Path]:
    units = loaded.manifest.normalisation
    sounds = [
        audio.Sound(piece.name, piece.title, "", generate.waveforms(piece.values_TX[:, None], units)[0])
        for piece in made
    ]
    files = list(audio.write(out, sounds, store.sample_rate))
    for number, first in enumerate(range(0, len(sounds), _COLUMNS_OF_SOUND)):
        path = out / f"picture-{number}.png"
        shown = sounds[first : first + _COLUMNS_OF_SOUND]
        figures.speech(path, {sound.title: sound.wave for sound in shown}, store.sample_rate)
        files.append(path)
    return files
