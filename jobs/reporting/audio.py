"""A few seconds of speech as WAV files: recorded, rebuilt from its latents, and drawn from the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from zfdist import atomic_io
from zfdist.data.loader import Batch, evaluation_batches
from zfdist.data.store import Store
from zfdist.evaluation import generate
from zfdist.evaluation.evaluate import EvaluationError, Loaded

WANTED_S = 3.0
_MOST_S = 5.0
_FULL_SCALE = 32768


class Sound(NamedTuple):
    """Speech and what it is; float32 samples in [-1, 1)."""

    name: str
    title: str
    what: str
    wave: NDArray[np.float32]

    @property
    def clipped_percent(self) -> float:
        """Samples at the limits of int16, of a hundred."""
        pcm = _pcm(self.wave)
        return 100 * float(np.mean((pcm == -_FULL_SCALE) | (pcm == _FULL_SCALE - 1)))


def speech(loaded: Loaded, store: Store, split: str, seed: int) -> list[Sound]:
    """Return one utterance of a split as recorded and rebuilt, and speech of the same length drawn from the model.

    The utterance is the one whose length is nearest to WANTED_S; of a long one, the beginning.

    Raises:
        EvaluationError: if the split has no utterance.
    """
    loaded.model.cpu()
    batch = _one_utterance(loaded, store, split)
    frames, units = batch.x_TBX.shape[0], loaded.manifest.normalisation
    drawn = generate.speech(loaded.model, units, sequences=1, frames=frames, seed=seed)
    means = generate.speech(loaded.model, units, sequences=1, frames=frames, seed=seed, frame_noise=0.0)
    name = store.names(split)[int(batch.ids_B)]
    rebuilt, prior = (
        "each frame's mean, given the frame before it and z from the posterior's mean",
        "z from the prior, ",
    )
    if not loaded.model.has_latents:
        rebuilt, prior = "each frame's mean, given the true frames before it", ""
    return [
        Sound("original", "Original", f"`{name}` of the {split} split", generate.originals(batch, units)[0]),
        Sound("reconstruction", "Reconstruction", rebuilt, generate.reconstructions(loaded.model, batch, units)[0]),
        Sound("sample", "Drawn from the model", f"{prior}each frame drawn and fed back", drawn[0]),
        Sound("sample-means", "Drawn, frame means", f"{prior}each frame its mean, fed back", means[0]),
    ]


def write(folder: Path, sounds: list[Sound], sample_rate: int) -> Iterator[Path]:
    """Write each sound as 16-bit WAV and yield its path; levels are kept as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for sound in sounds:
        path = folder / f"{sound.name}.wav"
        with atomic_io.replacing(path) as fresh:
            soundfile.write(fresh, _pcm(sound.wave), sample_rate, subtype="PCM_16", format="WAV")
        yield path


def _one_utterance(loaded: Loaded, store: Store, split: str) -> Batch:
    """Return the chosen utterance as a batch of one."""
    data = loaded.config.with_values({"data.eval_view": "utterances"}).data
    per_second = store.sample_rate / data.frame_samples
    chosen: tuple[Batch, int] | None = None
    distance = float("inf")
    for batch in evaluation_batches(store, data, split, rank=0, world_size=1, device=torch.device("cpu")):
        distances = (batch.lengths_B - WANTED_S * per_second).abs()
        row = int(distances.argmin())
        if float(distances[row]) < distance:
            chosen, distance = (batch, row), float(distances[row])
    if chosen is None:
        raise EvaluationError(f"the {split} split has no utterance of two frames or more to listen to")
    batch, row = chosen
    frames = min(int(batch.lengths_B[row]), max(1, round(_MOST_S * per_second)))
    return Batch(
        batch.x_TBX[:frames, row : row + 1],
        batch.y_TBX[:frames, row : row + 1],
        torch.tensor([frames]),
        batch.positions_B[row : row + 1],
        batch.ids_B[row : row + 1],
        num_sequences=1,
        num_frames=frames,
    )


def _pcm(wave: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.rint(wave * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
