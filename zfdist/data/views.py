"""The sequences that a config makes of a store, and whether they do for a run; without torch."""

from zfdist.config import DataConfig
from zfdist.data.order import OrderError, Sequences, refuse_too_few, view
from zfdist.data.store import Store


def refuse_unfit(store: Store, config: DataConfig) -> None:
    """Raise what a run would come to at its first batch, or only at its first validation.

    Raises:
        OrderError: if a view or `data.frame_samples` does not fit the store's kind, the training split has fewer
            sequences than a global batch, or the validation split has none.
        StoreError: if there is no such split.
    """
    refuse_too_few(len(sequences_of(store, config, "train", config.train_view)), config.global_batch)
    if not len(sequences_of(store, config, "valid", config.eval_view)):
        raise OrderError(
            f"data.eval_view = {config.eval_view}: the validation split of {store.root} has no sequence of two frames; "
            "prepare it with more data, or lower data.frame_samples"
        )


def sequences_of(store: Store, config: DataConfig, split: str, kind: str) -> Sequences:
    """Return the view named by `data.train_view` or `data.eval_view` over a split: which frames each sequence has.

    Raises OrderError if the view or `data.frame_samples` does not fit the store's kind, StoreError for an unknown
    split.
    """
    name, samples = store.kind.name, store.kind.frame_samples
    if samples not in (None, config.frame_samples):
        raise OrderError(
            f"data.frame_samples = {config.frame_samples}: must be {samples} for {config.root}, which holds {name}; "
            f"set --data.frame-samples {samples}"
        )
    if kind == "segments" and kind not in store.kind.sequences:
        raise OrderError(
            f"view {kind!r}: {config.root} holds {name}, whose rows are not cut; "
            "set --data.train-view utterances --data.eval-view utterances"
        )
    return view(kind, store.lengths(split) + store.kind.added, config.frame_samples, config.segment_frames)
