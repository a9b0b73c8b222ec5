"""The scores of simple models on the sequences that ours are scored on, see `zfdist.evaluation.baselines`."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from zfdist.config import DataConfig
from zfdist.data.kinds import BITS, PCM16, TOKENS
from zfdist.data.store import Store
from zfdist.data.views import sequences_of
from zfdist.evaluation.baselines import digits, sound, words
from zfdist.evaluation.bounds import COLUMNS
from zfdist.evaluation.evaluate import refuse_absent_split
from zfdist.evaluation.results import Question, result_fields
from zfdist.evaluation.scores import Scores
from zfdist.evaluation.sequences import scored, sequences_named


def baselines(store: Store, data: DataConfig, split: str, sigma_floor: float) -> Iterator[Scores]:
    """Yield the scores of each simple model for this kind of data; none for a kind that has no such models.

    Args:
        store: the data, as a model reads them.
        data: how the split is cut into sequences.
        split: which is scored; models are fitted to the training split.
        sigma_floor: smallest standard deviation of sound, as `model.sigma_floor`.

    Raises:
        EvaluationError: if there is no such split.
    """
    refuse_absent_split(store, split)
    found: Iterator[tuple[str, NDArray[np.float64]]] = iter(())
    if store.kind == TOKENS:
        found = words.scores(store, split)
    elif store.kind == BITS:
        found = digits.scores(store, split)
    elif store.kind == PCM16:
        found = sound.scores(
            store, split, lambda name: sequences_of(store, data, name, data.eval_view), data.frame_samples, sigma_floor
        )
    sequences = sequences_of(store, data, split, data.eval_view)
    ids_N = np.arange(len(sequences))
    names, groups, groups_N = sequences_named(store, data, split, ids_N)
    for name, log_p in found:
        log_p_N = log_p if len(log_p) == len(ids_N) else log_p[sequences.recordings]
        known = {"id": ids_N, "frames": sequences.frames, "elbo_nats": log_p_N, "log_px_nats": log_p_N}
        columns = [torch.as_tensor(known.get(column, np.zeros(len(ids_N))), dtype=torch.float64) for column in COLUMNS]
        fields = result_fields(
            torch.stack(columns, dim=1)[None],
            groups_N,
            Question(split=split, seeds=[0]),
            store.kind,
            data.frame_samples,
        )
        yield Scores(
            what=scored(store, data, split)
            | {"model": name, "step": None, "weights": None, "seeds": [], "iwae_samples": None, "is_exact": True},
            config=None,
            result=fields | {"seed": None, "seed_stderr": {}},
            ids_N=ids_N,
            names=names,
            groups=groups,
            frames_N=sequences.frames,
            elbo_N=log_p_N,
            log_px_N=log_p_N,
            kl_N=np.zeros(len(ids_N)),
            iwae_N=None,
        )
