"""Words by their counts: a unigram, and the interpolated Kneser-Ney trigram.

    unigram     p(w) = (c(w) + 1) / (N + V)
    trigram     p(w | u v) = max(c(u v w) - D, 0) / c(u v .) + D N(u v .) / c(u v .) p(w | v)

and so on down to p(w), interpolated with 1 / V; below the trigram c counts the different words that came before
(Kneser and Ney, 1995; interpolated: Chen and Goodman, 1999), but for what follows <s>. D = n1 / (n1 + 2 n2) for each
order. V are all words that can come: <unk> and </s>, but not <pad> and <s>.

Shapes: N places in the text, in the order of the sentences.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.data.store import Store

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]
_NEVER = 2  # <pad> and <s>
_ROWS = 1 << 14


class Text(NamedTuple):
    """Every word that is scored, </s> among them, with the two before it, and the number of its sentence."""

    words_N: Int64s
    before_N: Int64s
    """<s> for the first word of a sentence."""
    second_N: Int64s
    """-1 for the first word of a sentence, which has but one before it."""
    sentences_N: Int64s


class _Order(NamedTuple):
    """Counts of n-grams as sorted keys, and of their contexts."""

    keys: Int64s
    counts: Floats
    contexts: Int64s
    totals: Floats
    kinds: Floats
    discount: float


def read(store: Store, split: str) -> Text:
    """Return the text of a split."""
    parts = []
    lengths = store.lengths(split)
    for first in range(0, len(lengths), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(lengths)))
        width = int(lengths[rows].max(initial=0))
        ids = store.gather(split, rows, np.zeros(len(rows), np.int64), width).astype(np.int64)
        framed = store.kind.framed(ids, lengths[rows])  # <s> ... </s>, as models see it
        framed = np.concatenate([np.full((len(rows), 1), -1), framed], axis=1)
        is_scored = np.arange(width + 1) <= lengths[rows][:, None]
        columns = (framed[:, 2:], framed[:, 1:-1], framed[:, :-2], np.repeat(rows[:, None], width + 1, axis=1))
        parts.append(np.stack([column[is_scored] for column in columns]))
    return Text(*np.concatenate(parts, axis=1)) if parts else Text(*np.empty((4, 0), np.int64))


def unigram(train: Text, test: Text, vocabulary: int) -> Floats:
    """Return log p of each word of `test`, in nats, by the counts of `train` plus one."""
    counts = np.bincount(train.words_N, minlength=vocabulary)
    log_p: Floats = np.log((counts[test.words_N] + 1) / (len(train.words_N) + vocabulary - _NEVER))
    return log_p


def trigram(train: Text, test: Text, vocabulary: int) -> Floats:
    """Return log p of each word of `test`, in nats, by the interpolated Kneser-Ney trigram of `train`."""
    has_two = train.second_N >= 0
    threes, counts = np.unique(_key(vocabulary, *(column[has_two] for column in train[2::-1])), return_counts=True)
    third = _order(threes, counts, vocabulary)
    starts, start_counts = np.unique(
        _key(vocabulary, train.before_N[~has_two], train.words_N[~has_two]), return_counts=True
    )
    twos, continuations = np.unique(threes % vocabulary**2, return_counts=True)
    pairs = np.concatenate([starts, twos])  # nothing comes before <s>, so what follows it is counted as it is
    sorting = np.argsort(pairs)
    second = _order(pairs[sorting], np.concatenate([start_counts, continuations])[sorting], vocabulary)
    ones, continuations = np.unique(pairs % vocabulary, return_counts=True)
    first = _order(ones, continuations, vocabulary)
    p_N = np.full(len(test.words_N), 1 / (vocabulary - _NEVER))
    p_N = _interpolated(first, test.words_N, np.zeros_like(test.words_N), p_N)
    p_N = _interpolated(second, _key(vocabulary, test.before_N, test.words_N), test.before_N, p_N)
    has_two = test.second_N >= 0
    context_N = _key(vocabulary, test.second_N, test.before_N)
    p_N = np.where(has_two, _interpolated(third, _key(vocabulary, context_N, test.words_N), context_N, p_N), p_N)
    log_p: Floats = np.log(p_N)
    return log_p


def _key(vocabulary: int, *words: Int64s) -> Int64s:
    """Return a number for each n-gram; 65,536 words and three of them are below 2**63."""
    key = np.zeros_like(words[0])
    for word in words:
        key = key * vocabulary + word
    return key


def _order(keys: Int64s, counts: Int64s, vocabulary: int) -> _Order:
    contexts, places = np.unique(keys // vocabulary, return_inverse=True)
    singles, doubles = int((counts == 1).sum()), int((counts == 2).sum())
    discount = (singles + 0.5) / (singles + 2 * doubles + 1)  # halves, so that a text without singles has one too
    totals, kinds = np.bincount(places, counts).astype(float), np.bincount(places).astype(float)
    return _Order(keys, counts.astype(float), contexts, totals, kinds, discount)


def _interpolated(order: _Order, keys_N: Int64s, contexts_N: Int64s, lower_N: Floats) -> Floats:
    """Return p by this order, given that by the one below; the latter where the context was never seen."""
    counts_N = _looked_up(order.keys, order.counts, keys_N)
    totals_N = _looked_up(order.contexts, order.totals, contexts_N)
    kinds_N = _looked_up(order.contexts, order.kinds, contexts_N)
    seen_N = np.maximum(totals_N, 1.0)
    own_N = np.maximum(counts_N - order.discount, 0.0) / seen_N + order.discount * kinds_N / seen_N * lower_N
    return np.where(totals_N > 0, own_N, lower_N)


def _looked_up(keys: Int64s, values: Floats, wanted_N: Int64s) -> Floats:
    places_N = np.minimum(np.searchsorted(keys, wanted_N), max(0, len(keys) - 1))
    return np.where(keys[places_N] == wanted_N, values[places_N], 0.0) if len(keys) else np.zeros(len(wanted_N))


def scores(store: Store, split: str) -> Iterator[tuple[str, Floats]]:
    """Yield name and log-likelihood of each sentence of a split by each model, fitted to the training split."""
    train, test = read(store, "train"), read(store, split)
    for name, model in (("unigram", unigram), ("kneser-ney-trigram", trigram)):
        log_p_N = model(train, test, store.frame_size(1))
        yield name, np.bincount(test.sentences_N, log_p_N, minlength=len(store.lengths(split))).astype(float)
