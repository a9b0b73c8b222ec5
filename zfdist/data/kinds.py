"""What a row of a store is: 16-bit sound, a binary image, or a sentence of word ids; and all that follows from it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PAD, START, END, UNKNOWN = range(4)
"""Ids of the words that are no words."""
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""Their names, the first entries of every vocabulary."""
NO_LABEL = -1


def _text_of(name: str) -> str:
    """Return the review, or the line or row of a file, that a sentence FILE:LINE[:PART ...] is of."""
    file, line = re.fullmatch(r"(.*?)((?::\d+)*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    is_review = re.search(r"\.txt(\.\w+)?$", file, re.IGNORECASE)  # a file of this name is read as one review
    return file if is_review else file + ":".join(line.split(":")[:2])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the rows of a store are kept, what a sequence adds to them, what models of them are, what people call them.

    Where the code needs to know what its data are, it asks here; only `jobs.reporting.show` goes by the name.
    """

    name: str
    column: str
    dtype: np.dtype[Any]
    densities: tuple[str, ...]
    """Those of `model.density` that such values can have."""
    width: int | None = None
    """Elements of every row, if all have the same number."""
    start: int | None = None
    """Element put before a row, so that the first one is predicted as well; None: nothing is added to a row."""
    end: int | None = None
    """Element put after a row, so that its end is predicted."""
    frame_samples: int | None = 1
    """Elements of a frame; None: as many as `data.frame_samples` says."""
    is_normalised: bool = False
    """Whether a model sees the elements less their mean, over their standard deviation; else as they are."""
    has_vocabulary: bool = False
    """Whether the elements are ids of words: int64 without a last dimension, one of as many as the store has words."""

    title: str
    """What the data are, e.g. "sound"."""
    rows: str
    """What rows are, e.g. "recordings"."""
    sequences: Mapping[str, str] = field(hash=False)
    """The views that there may be, and what a sequence is in each, e.g. {"utterances": "image"}."""
    frame: str
    """What one step of a sequence is, e.g. "frame"."""
    sample: str
    """What one element is, e.g. "sample"."""
    scored: str
    """What the steps are that are scored, e.g. "frames"."""
    score: Literal["nll_nats", "perplexity"] | None = None
    """What of `zfdist.evaluation.results.Result` readers expect beside the bound."""
    group: Callable[[str], str] = field(hash=False, default=str)
    """What a row is a part of, from its name: the errors of means are over what came by itself."""
    groups: str = ""
    """What those are, if they are not the rows."""
    prefix: float
    """What a continuation begins with unless told otherwise: seconds of a store with a rate, else frames."""
    new: float
    """What is generated unless told otherwise, likewise; of rows of one width the whole row."""

    @property
    def added(self) -> int:
        """Elements that a sequence has more than its row."""
        return (self.start is not None) + (self.end is not None)

    def framed(self, rows_BS: NDArray[Any], lengths_B: NDArray[np.int64]) -> NDArray[Any]:
        """Put start and end around rows of the given lengths, [B, S] -> [B, S + added]."""
        if not self.added:
            return rows_BS
        framed_BS = np.empty((rows_BS.shape[0], rows_BS.shape[1] + self.added), rows_BS.dtype)
        framed_BS[:, 0] = self.start
        framed_BS[:, 1 : 1 + rows_BS.shape[1]] = rows_BS
        if self.end is not None:
            framed_BS[np.arange(len(lengths_B)), lengths_B + 1] = self.end
        return framed_BS


PCM16 = Kind(
    name="pcm16",
    column="pcm",
    dtype=np.dtype(np.int16),
    densities=("gaussian", "mixture", "autoregressive"),
    frame_samples=None,
    is_normalised=True,
    title="sound",
    rows="recordings",
    sequences={"utterances": "utterance", "segments": "segment"},
    frame="frame",
    sample="sample",
    scored="frames",
    prefix=1.0,
    new=3.0,
)
"""A recording: samples at the manifest's rate."""
BITS = Kind(
    name="bits",
    column="pixels",
    dtype=np.dtype(np.uint8),
    densities=("bernoulli",),
    width=784,
    start=0,
    title="binary images",
    rows="images",
    sequences={"utterances": "image"},
    frame="pixel",
    sample="pixel",
    scored="pixels",
    score="nll_nats",
    prefix=392,
    new=784,
)
"""A binary image, row by row; the pixel before the first one is 0."""
TOKENS = Kind(
    name="tokens",
    column="tokens",
    dtype=np.dtype(np.uint16),
    densities=("categorical",),
    start=START,
    end=END,
    has_vocabulary=True,
    title="sentences",
    rows="sentences",
    groups="reviews or lines",
    sequences={"utterances": "sentence"},
    frame="word",
    sample="word",
    scored="words, with </s>",
    score="perplexity",
    group=_text_of,
    prefix=3,
    new=20,
)
"""A sentence: ids of words in the store's vocabulary, none of them <pad>, <s> or </s>."""

KINDS = {kind.name: kind for kind in (PCM16, BITS, TOKENS)}


def with_density(density: str) -> tuple[Kind, ...]:
    """Return the kinds of data whose values can have a `model.density`."""
    return tuple(kind for kind in KINDS.values() if density in kind.densities)
