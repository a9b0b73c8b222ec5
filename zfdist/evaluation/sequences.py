"""Which sequences a split has: what they are of, in which units and words; the same for networks and simple models."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfdist.config import DataConfig
from zfdist.data.as_trained import unknown_words, vocabulary_sha256
from zfdist.data.store import Store
from zfdist.data.views import sequences_of


def scored(store: Store, data: DataConfig, split: str) -> dict[str, Any]:
    """Return which sequences a split has, in which units and words: the names of `zfdist.evaluation.scores.SAME`."""
    return {
        "data_fingerprint": store.fingerprint,
        "data": data.root,
        "kind": store.kind.name,
        "split": split,
        "view": data.eval_view,
        "segment_frames": data.segment_frames if data.eval_view == "segments" else None,
        "frame_samples": data.frame_samples,
        "mean": store.mean,
        "std": store.std,
        "words_sha256": vocabulary_sha256(store),
    }


def sequences_named(
    store: Store, data: DataConfig, split: str, ids_N: NDArray[np.int64]
) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Return, of sequences of a split, the names of their rows, the groups that these are of, and their numbers."""
    names = store.names(split)
    rows = [names[i] for i in sequences_of(store, data, split, data.eval_view).recordings[ids_N].tolist()]
    groups = [store.kind.group(name) for name in rows]
    others = [store.names(other)[:1] for other in store.splits if other != split]
    if len(set(groups)) == 1 and any(store.kind.group(name) == groups[0] for some in others for name in some):
        groups = rows  # what is in another split too did not come by itself: a text of which each line stands alone
    return rows, groups, np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64)


def unknown_share(store: Store, split: str) -> float | None:
    """Return the share of words that are <unk> as the store is read; None if it has no words."""
    if not store.kind.has_vocabulary:
        return None
    return unknown_words(store, split) / max(1, int(store.lengths(split).sum()))
