"""The bounds over a split: sums and counts over all real frames, reduced once, then means over sequences.

Every real sequence weighs 1, padding nothing, and no mean of batch means is ever taken. The noise of a sequence
depends on the seed and its place in the split only, so neither batch size nor world size changes a result.
Needs neither Ray nor DeepSpeed, and reads no pickles.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zfdist.checkpoint import data_identity
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.checkpoint.weights import read as read_weights
from zfdist.config import Config
from zfdist.container import cpus
from zfdist.data.loader import Batch, evaluation_batches
from zfdist.data.store import Store
from zfdist.data.views import sequences_of
from zfdist.evaluation.bounds import COLUMNS, Model, Sums, score, sums_of
from zfdist.evaluation.results import Bound, EvaluationError, Question, Result, bound_of, result_fields
from zfdist.evaluation.scores import Scores
from zfdist.evaluation.sequences import scored, sequences_named, unknown_share
from zfdist.model import systems
from zfdist.model.kernels import matmul_backend
from zfdist.model.networks.network import Network

__all__ = [
    "Evaluation",
    "EvaluationError",
    "Loaded",
    "data_of",
    "evaluate",
    "evaluate_split",
    "load_model",
    "on_split",
    "refuse_other_data",
    "result_of",
    "share_of",
]


class Evaluation(NamedTuple):
    """An answer: what a split amounts to, and its single sequences."""

    result: Result
    scores: Scores


class Loaded(NamedTuple):
    """A trained network and what its checkpoint says about it."""

    model: Network
    config: Config
    manifest: CheckpointManifest
    folder: Path
    """Of the checkpoint."""


def evaluate(
    model: Model,
    batches: Iterable[Batch],
    *,
    z_dim: int,
    frame_samples: int,
    seed: int,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Bound:
    """Return the bound over all sequences of `batches`, one posterior sample each.

    `model` is anything called like `ZForcing.forward`. `reduce` adds a float64 tensor up over workers; it is called
    once, by every worker, also by one that got no batch.

    Raises:
        EvaluationError: if there are no sequences on any worker.
    """
    sums = sums_of(score(model, batches, z_dim=z_dim, seeds=[seed])[0])
    return bound_of(Sums(*reduce(sums).tolist()), frame_samples, seed)


def evaluate_split(loaded: Loaded, store: Store, question: Question, *, device: torch.device) -> Evaluation:
    """Return what is asked about a loaded model over one split of a store, in one process.

    Raises:
        EvaluationError: if the store has no such split.
        OtherDataError: if it has other frames, words or units than the model was trained with.
    """
    return result_of(loaded, store, question, [share_of(loaded, store, question, device=device)])


def on_split(loaded: Loaded, question: Question) -> Evaluation:
    """Return what is asked about a loaded model, on the data of its config; shows progress if it takes long.

    Raises:
        StoreError: if the data is not there or damaged.
        OrderError: if the config's frames or view do not fit the data.
        EvaluationError, OtherDataError: if model and data do not go together.
    """
    data, store = loaded.config.data, data_of(loaded, question.as_trained)
    frames = 0
    if question.split in store.splits:  # else `evaluate_split` refuses it
        frames = sequences_of(store, data, question.split, data.eval_view).num_frames
    passes = len(question.seeds) * (1 + (question.importance.samples if question.importance else 0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _progress(passes * frames) as advance:
        # Every call of the network is told the scored frames of each row, and has noise for one trajectory or more.
        hook = loaded.model.register_forward_hook(
            lambda _module, given, _terms: advance(int(given[2].sum()) * (given[3].shape[1] // len(given[2])))
        )
        try:
            return evaluate_split(loaded, store, question, device=device)
        finally:
            hook.remove()


def data_of(loaded: Loaded, as_trained: bool = False) -> Store:
    """Return the data of a loaded model's config; `as_trained`: under the model's own mean, std and vocabulary.

    Raises:
        StoreError: if the data is not there or damaged.
        OtherDataError: if it is of another kind, rate, vocabulary or normalisation than the model was trained on.
    """
    data = loaded.config.data
    store = Store.open(data.root, verify=data.verify, cache=data.cache)
    data_identity.refuse_other_kind(loaded.manifest, store, data.frame_samples)
    if as_trained:
        return data_identity.read_as_trained(loaded.manifest, loaded.folder, store)
    if store.fingerprint == loaded.manifest.data_fingerprint:
        return data_identity.in_units(loaded.manifest, store)  # it may have been trained under other units than its own
    data_identity.refuse_other_units(loaded.manifest, store)
    return store


def share_of(
    loaded: Loaded, store: Store, question: Question, *, device: torch.device, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Return one worker's part of an answer, as `bounds.score` does, on the CPU.

    Raises:
        EvaluationError: as `evaluate_split`.
    """
    refuse_other_data(loaded, store, question.split)
    data = loaded.config.data
    with matmul_backend.float32(device, onednn=loaded.config.engine.matmul == "auto"):
        return score(
            loaded.model.to(device),
            evaluation_batches(store, data, question.split, rank=rank, world_size=world_size, device=device),
            z_dim=loaded.config.model.z_dim,
            seeds=question.seeds,
            importance=question.importance,
        ).cpu()


def result_of(loaded: Loaded, store: Store, question: Question, parts: Sequence[Tensor]) -> Evaluation:
    """Return the answer that all workers' parts amount to; raises EvaluationError if that is nothing."""
    config, split = loaded.config, question.split
    scores_SNC = torch.cat(list(parts), dim=1)
    scores_SNC = scores_SNC[:, scores_SNC[0, :, 1] > 0]
    scores_SNC = scores_SNC[:, scores_SNC[0, :, 0].argsort()]  # the order of the parts must not show in the last digit
    ids_N = scores_SNC[0, :, 0].long().numpy()
    names, groups, groups_N = sequences_named(store, config.data, split, ids_N)
    result = Result(
        **result_fields(scores_SNC, groups_N, question, store.kind, config.data.frame_samples),
        split=question.split,
        view=config.data.eval_view,
        kind=store.kind.name,
        system=config.model.system,
        is_exact=not loaded.model.has_latents,
        density=config.model.density,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        mean=store.mean,
        std=store.std,
        sigma_floor=config.model.sigma_floor,
        step=loaded.manifest.step,
        unknown_share=unknown_share(store, split),
    )
    mean = dict(zip(COLUMNS, scores_SNC.mean(0).t().numpy(), strict=True))
    scores = Scores(
        what=what_of(loaded, store, question),
        config=dataclasses.asdict(loaded.manifest.config),
        result=vars(result),
        ids_N=ids_N,
        names=names,
        groups=groups,
        frames_N=mean["frames"].astype(np.int64),
        elbo_N=mean["elbo_nats"],
        log_px_N=mean["log_px_nats"],
        kl_N=mean["kl_nats"],
        iwae_N=mean["iwae_nats"] if question.importance else None,
    )
    return Evaluation(result, scores)


def what_of(loaded: Loaded, store: Store, question: Question) -> dict[str, Any]:
    """Return what `Scores.what` says of an answer."""
    importance = question.importance
    return scored(store, loaded.config.data, question.split) | {
        "model": loaded.config.model.system,
        "step": loaded.manifest.step,
        "weights": loaded.manifest.files[checkpoint.WEIGHTS]["xxh3_128"],
        "seeds": list(question.seeds),
        "iwae_samples": importance.samples if importance else None,
        "is_exact": not loaded.model.has_latents,
    }


def load_model(path: Path) -> Loaded:
    """Return the network of a checkpoint, an export, or a run (its best checkpoint, else its newest), on the CPU.

    Torch takes no more threads from here on than this process has CPUs for: others would wait inside of every sum.

    Raises:
        CheckpointError: if there is none, it is damaged, or its weights are not those of its config.
    """
    folder = checkpoint.resolve(path)
    manifest = checkpoint.verify(folder, only=checkpoint.WEIGHTS)
    weights = read_weights(folder)
    config = manifest.config
    x_dim = _x_dim_of_before(config, weights) if manifest.x_dim is None else manifest.x_dim
    model = systems.build(config.model, x_dim, seed=0)
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{folder / checkpoint.WEIGHTS}: tensor {name} is missing, unknown or of another shape than its "
                "config says: the checkpoint was written by another version"
            )
    model.load_state_dict(weights)
    torch.set_num_threads(min(torch.get_num_threads(), cpus()))
    return Loaded(model.eval(), config, manifest, folder)


def refuse_other_data(loaded: Loaded, store: Store, split: str) -> None:
    """Raise EvaluationError if a store has no such split, OtherDataError if it is not as a model was trained with."""
    refuse_absent_split(store, split)
    data_identity.refuse_other_kind(loaded.manifest, store, loaded.config.data.frame_samples)
    data_identity.refuse_other_units(loaded.manifest, store)


def refuse_absent_split(store: Store, split: str) -> None:
    """Raise EvaluationError if a store has no such split."""
    if split not in store.splits:
        raise EvaluationError(f"split {split!r}: {store.root} has {', '.join(store.splits)}")


def _x_dim_of_before(config: Config, weights: Mapping[str, Tensor]) -> int:
    """Return x_dim for a manifest of the time when it was not recorded: words are the rows of their table."""
    if config.model.density == "categorical" and "embed.weight" in weights:
        return weights["embed.weight"].shape[0]
    return config.data.frame_samples


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show, on stderr and not before a second has passed, the share of `total` frames done and the time left."""
    begun = latest = time.monotonic()
    done = 0
    on_terminal = sys.stderr.isatty()

    def advance(frames: int) -> None:
        nonlocal done, latest
        done += frames
        now = time.monotonic()
        if now - latest < (1 if on_terminal else 10) or done >= total:
            return
        latest = now
        left_s = (now - begun) * (total - done) / done
        line = f"{done:,} of {total:,} frames, {100 * done / total:.0f} %, {left_s:.0f} s left"
        print(f"\r{line:<72}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    yield advance
    if on_terminal and latest != begun:
        print(f"\r{'':<72}\r", end="", file=sys.stderr, flush=True)
