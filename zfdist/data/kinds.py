"""What a row of a store is: 16-bit sound, a binary image, or a sentence of word ids."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD, START, END, UNKNOWN = range(4)
"""Ids of the words that are no words."""
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""Their names, the first entries of every vocabulary."""
NO_LABEL = -1


@dataclass(frozen=True)
class Kind:
    """How the rows of a store are kept, and what a sequence adds to them."""

    name: str
    column: str
    dtype: np.dtype[Any]
    width: int | None = None
    """Elements of every row, if all have the same number."""
    start: int | None = None
    """Element put before a row, so that the first one is predicted as well; None: nothing is added to a row."""
    end: int | None = None
    """Element put after a row, so that its end is predicted."""

    @property
    def is_normalised(self) -> bool:
        """Whether a model sees the elements less their mean, over their standard deviation; else as they are."""
        return self.start is None

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


PCM16 = Kind("pcm16", "pcm", np.dtype(np.int16))
"""A recording: samples at the manifest's rate."""
BITS = Kind("bits", "pixels", np.dtype(np.uint8), width=784, start=0)
"""A binary image, row by row; the pixel before the first one is 0."""
TOKENS = Kind("tokens", "tokens", np.dtype(np.uint16), start=START, end=END)
"""A sentence: ids of words in the store's vocabulary, none of them <pad>, <s> or </s>."""

KINDS = {kind.name: kind for kind in (PCM16, BITS, TOKENS)}
