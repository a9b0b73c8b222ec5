"""Data as a model sees them that was trained on others: under its normalisation, and in its words."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import UNKNOWN
from zfdist.data.store import Store


def words_as_file(words: Sequence[str]) -> str:
    """Return a vocabulary as the text of its file: a word a line, in the order of their ids."""
    return "\n".join(words) + "\n"


def vocabulary_sha256(store: Store) -> str | None:
    """Return the identity of the words and their ids; None if the data are no sentences."""
    if isinstance(store, AsTrained):
        return store.words_sha256
    return None if store.manifest.vocabulary is None else store.manifest.vocabulary.sha256


class AsTrained(Store):
    """A store whose samples are normalised by another mean and std, and whose words have other ids."""

    def __init__(self, store: Store, mean: float, std: float, words: Sequence[str] | None) -> None:
        """Read `store` so; words (None where it has none) that are not among `words` become <unk>."""
        super().__init__(store.root, store.manifest, store._verify, store._cache)
        self._units = mean, std
        self._words = None if words is None else list(words)
        self.words_sha256 = None if words is None else hashlib.sha256(words_as_file(words).encode()).hexdigest()
        ids = {word: i for i, word in enumerate(words or ())}
        self._ids = None if words is None else np.array([ids.get(w, UNKNOWN) for w in store.vocabulary()], np.uint16)

    @property
    def mean(self) -> float:
        """What is subtracted from a sample."""
        return self._units[0]

    @property
    def std(self) -> float:
        """What a sample is divided by."""
        return self._units[1]

    def frame_size(self, frame_samples: int) -> int:
        """Return the values of a frame of `frame_samples` samples, or (sentences) how many words there are."""
        return frame_samples if self._words is None else len(self._words)

    def vocabulary(self) -> list[str]:
        """Return the words in the order of their ids."""
        return super().vocabulary() if self._words is None else list(self._words)

    def gather(self, split: str, recordings: NDArray[np.int64], starts: NDArray[np.int64], width: int) -> NDArray[Any]:
        """As `Store.gather`, in these words."""
        windows = super().gather(split, recordings, starts, width)
        return windows if self._ids is None else self._ids.take(windows, mode="clip")


def unknown_words(store: Store, split: str, block: int = 1 << 16) -> int:
    """Return how many words of a split of a store of sentences are <unk>."""
    lengths = store.lengths(split)
    total = 0
    for first in range(0, len(lengths), block):
        part = lengths[first : first + block]
        recordings = np.arange(first, first + len(part))
        ids = store.gather(split, recordings, np.zeros(len(part), np.int64), int(part.max()))
        total += int(((ids == UNKNOWN) & (np.arange(ids.shape[1]) < part[:, None])).sum())
    return total
