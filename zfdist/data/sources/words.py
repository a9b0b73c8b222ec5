"""From text to words and from words to ids: rules that are written down and have a version, and the vocabulary."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import SPECIALS, TOKENS, UNKNOWN

TOKENIZERS = {"blanks": "blanks-1", "words": "words-1"}
"""blanks-1: the text is tokenised already, words are parted by blanks. words-1: see `tokenised`."""
SENTENCES = {"lines": "lines-1", "marks": "marks-1"}
"""lines-1: a line is a sentence. marks-1: see `sentences`."""
MOST_WORDS = np.iinfo(TOKENS.dtype).max + 1 - len(SPECIALS)

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|\.{2,}|\S")
_BREAK = re.compile(r"<br\s*/?>|\n", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?])[\"')\]\u2019\u201d]*\s+")


def tokenised(sentence: str, tokenizer: str) -> list[str]:
    """Cut a sentence into words.

    "words" (version 1): in lower case; a word is a run of letters and digits, with apostrophes or hyphens inside, or a
    run of dots, or any other character that is not blank.
    """
    return sentence.split() if tokenizer == "blanks" else _WORD.findall(sentence.lower())


def sentences(line: str, rule: str) -> list[str]:
    """Cut a line of text into sentences.

    "marks" (version 1): at `<br />`, and at blanks after . ! or ? and any closing quotes or brackets (which are left
    out there); abbreviations are not known to it.
    """
    if rule == "lines":
        return [line]
    return [part for piece in _BREAK.split(line) for part in _END.split(piece) if part.strip()]


class Vocabulary:
    """The most frequent words and their ids, the special ones first."""

    def __init__(self, words: list[str]) -> None:
        """Number `words`, which hold no special one, in their order."""
        self.words = words
        self._ids = {word: i for i, word in enumerate(words, start=len(SPECIALS))}

    @staticmethod
    def of(counts: Counter[str], size: int) -> "Vocabulary":
        """Take the `size` most frequent words, of equally frequent ones those of smaller code points."""
        known = [(word, count) for word, count in counts.items() if word not in SPECIALS]
        return Vocabulary([word for word, _ in sorted(known, key=lambda item: (-item[1], item[0]))[:size]])

    def ids(self, words: Iterable[str]) -> NDArray[np.uint16]:
        """Return the ids of words, that of <unk> for all others; also for a word that is spelled like a special one."""
        return np.fromiter((self._ids.get(word, UNKNOWN) for word in words), np.uint16)
