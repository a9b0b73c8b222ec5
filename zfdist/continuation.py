"""Whether a run may be begun, or gone on with: all that is refused, before anything is written.

Asked by the command before it launches workers, and by every worker again before it makes its parts. Without torch,
unless a new run starts from weights or a parameter budget is to be spent.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.config import Config, ConfigError, ModelConfig
from zfdist.data import views
from zfdist.run_protocol import Weights

if TYPE_CHECKING:
    from zfdist.data.store import Store

_FIXED = ("data.frame_samples", "data.segment_frames", "data.train_view", "data.global_batch", "data.window_batches")


def accepted(
    config: Config,
    store: "Store",
    newest: CheckpointManifest | None,
    *,
    run: str,
    device: str,
    workers: Sequence[int],
    start_from: Weights | None,
) -> Config:
    """Return the config with which a run may go on, its parameter budget spent.

    Args:
        config: what is asked for.
        store: its data.
        newest: of the run's newest checkpoint; None for a new run.
        run: what messages call the run.
        device: "cpu" or "cuda".
        workers: their possible numbers; one that can go on is enough.
        start_from: see `zfdist.train`.

    Raises:
        ConfigError: if the model does not go with the data or the device.
        OrderError, StoreError: if the data do not go with the config, see `zfdist.data.views.refuse_unfit`.
        CheckpointError: if it would not be the same run: other model, data, precision, order or seed, fewer steps; or
            its states cannot be cut for so many workers; or the weights to start from are not there or others.
        StorageError: if those are in a store that cannot be used.
    """
    _refuse_other_density(store, config)
    views.refuse_unfit(store, config.data)
    precision = config.engine.precision_on(device)
    if config.model.parameter_budget:
        x_dim = store.frame_size(config.data.frame_samples)
        config = dataclasses.replace(config, model=_sized(config, x_dim, newest))
    if newest is not None:
        _refuse_other_data(store, newest, run)
        _refuse_other_run(config, newest, precision, run)
        _refuse_recutting(config, newest, workers, run)
    elif start_from is not None:
        weights_to_start_from(config, store, start_from)
    return config


def weights_to_start_from(config: Config, store: "Store", start_from: Weights) -> Path:
    """Return the checkpoint or export that `start_from` means, once its weights and what they are of were checked.

    Raises:
        CheckpointError: if there is none, it is damaged, or of another model.
        OtherDataError: if the weights are of data of another kind, rate, frame, vocabulary or normalisation.
        StorageError: if it is in a store that cannot be used.
    """
    from zfdist.checkpoint import data_identity, fetch

    folder = checkpoint.resolve(fetch.with_weights(fetch.local(start_from.where, Path(config.data.cache))))
    manifest = checkpoint.verify(folder, only=checkpoint.WEIGHTS)
    if manifest.config.model != config.model:
        old, new = manifest.config.flat(), config.flat()
        name = next(n for n in new if n.startswith("model.") and old[n] != new[n])
        raise CheckpointError(f"{folder} was trained with {name} = {old[name]}, this run has {new[name]}")
    data_identity.refuse_other_kind(manifest, store, config.data.frame_samples)
    if store.manifest.vocabulary is not None:
        data_identity.refuse_other_units(manifest, store, "a model of sentences is trained in its own words alone")
    elif not start_from.as_trained:
        data_identity.refuse_other_units(manifest, store)
    return folder


def in_units(config: Config, store: "Store", newest: CheckpointManifest | None, start_from: Weights | None) -> "Store":
    """Return the data of an accepted run under the mean and std that it has, or takes over from its first weights."""
    from zfdist.checkpoint import data_identity

    if newest is None and start_from is not None and start_from.as_trained:
        newest = checkpoint.read_manifest(weights_to_start_from(config, store, start_from))
    return store if newest is None else data_identity.in_units(newest, store)


def _sized(config: Config, x_dim: int, newest: CheckpointManifest | None) -> ModelConfig:
    """Return the model with its budget spent; a run that goes on keeps the sizes that it has."""
    from zfdist.model import systems

    kept = None if newest is None else systems.sized_as(config.model, newest.config.model, x_dim)
    return kept or systems.sized(config.model, config.loss, x_dim)


def _refuse_other_density(store: "Store", config: Config) -> None:
    densities = store.kind.densities
    if config.model.density not in densities:
        raise ConfigError(
            f"model.density = {config.model.density}: {store.root} holds {store.kind.name}, which take "
            f"{' or '.join(densities)}"
        )


def _refuse_other_data(store: "Store", newest: CheckpointManifest, run: str) -> None:
    before, now, generation = newest.data_fingerprint, store.fingerprint, store.manifest.generation
    if before != now:
        grown = f", as recordings were added to it ({generation} parts)" if generation > 1 else ""
        raise CheckpointError(
            f"{run} was trained with the fingerprint of the data = {before}, and now it is {now}: {store.root} has "
            f"changed or is another{grown}; use the old data to go on, or another --name for a new run (--from takes "
            "its weights along, with --as-trained under their mean and std)"
        )


def _refuse_other_run(config: Config, newest: CheckpointManifest, precision: str, run: str) -> None:
    old, new = newest.config.flat(), config.flat()
    fixed = [n for n in new if n.startswith("model.") and n != "model.recurrence"] + [*_FIXED, "train.seed"]
    pairs = {name: (old[name], new[name]) for name in fixed}
    pairs["engine.precision"] = (newest.precision, precision)
    for name, (before, now) in pairs.items():
        if before != now:
            raise CheckpointError(
                f"{run} was trained with {name} = {before}, and now it is {now}: "
                "use the old one to go on, or another --name for a new run (--from takes its weights along)"
            )
    if newest.step > config.train.steps:
        raise CheckpointError(
            f"{run} has come to step {newest.step} already, and train.steps = {config.train.steps}: "
            f"give {newest.step} or more to go on, or another --name for a new run"
        )


def _refuse_recutting(config: Config, newest: CheckpointManifest, workers: Sequence[int], run: str) -> None:
    saved, stage = newest.config.engine.zero_stage, config.engine.zero_stage
    if not any(config.engine.loading(saved, newest.world_size, count) for count in workers):
        raise CheckpointError(
            f"{run}: its checkpoint was written by {newest.world_size} workers with engine.zero_stage = {saved} and "
            f"cannot be read by {workers[-1]} with engine.zero_stage = {stage}: use the same number and stage, or "
            "start a new run from its weights with --from"
        )
