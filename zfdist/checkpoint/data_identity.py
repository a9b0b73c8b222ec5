"""Whether data mean to a model what those meant that it was trained on: kind, rate, frames, words and units."""

from pathlib import Path

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.data.as_trained import AsTrained, vocabulary_sha256
from zfdist.data.store import Store
from zfdist.errors import ZfdistError

_KIND_OF = {"bernoulli": "bits", "categorical": "tokens"}  # where a manifest does not record it
REMEDY = "use the data that it was trained on, or pass --as-trained to read these as the model knows it"


class OtherDataError(ZfdistError):
    """Data that a model cannot be used on; the message names both, what differs and the remedy."""


def refuse_other_kind(manifest: CheckpointManifest, store: Store, frame_samples: int) -> None:
    """Raise OtherDataError for data that a model cannot read at all: another kind, rate, or samples of a frame."""
    kind = manifest.data_kind or _KIND_OF.get(manifest.config.model.density, "pcm16")
    if store.kind.name != kind:
        raise OtherDataError(
            f"{store.root} holds {store.kind.name}, and the model was trained on {kind}: use data of that kind"
        )
    if manifest.sample_rate not in (None, store.sample_rate):
        raise OtherDataError(
            f"{store.root} has {store.sample_rate:,} samples a second, and the model was trained on "
            f"{manifest.sample_rate:,}: prepare the data with --sample-rate {manifest.sample_rate}"
        )
    before = manifest.config.data.frame_samples
    if frame_samples != before:
        raise OtherDataError(
            f"data.frame_samples = {frame_samples}: the model has {before}; pass --data.frame-samples {before}"
        )


def refuse_other_units(manifest: CheckpointManifest, store: Store, remedy: str = REMEDY) -> None:
    """Raise OtherDataError for data in other words than a model was trained on, or normalised otherwise."""
    mean, std = manifest.normalisation["mean"], manifest.normalisation["std"]
    if (store.mean, store.std) != (mean, std):
        raise OtherDataError(
            f"the model was trained on samples with mean {mean:.6g} and std {std:.6g}, {store.root} has "
            f"{store.mean:.6g} and {store.std:.6g}: its units differ; {remedy}"
        )
    words = vocabulary_sha256(store)
    if words is None or words == manifest.vocabulary_sha256:
        return
    if manifest.vocabulary_sha256 is None:  # it was not recorded
        if store.fingerprint == manifest.data_fingerprint:
            return
        raise OtherDataError(
            f"{store.root} may have other words than the model was trained with, which its checkpoint does not say: "
            "use the data that it was trained on"
        )
    raise OtherDataError(
        f"the model was trained with another vocabulary ({manifest.x_dim:,} words) than that of {store.root} "
        f"({store.frame_size(1):,}): the same number means another word; {remedy}"
    )


def in_units(manifest: CheckpointManifest, store: Store) -> Store:
    """Return data under the mean and std of a model that was trained on the same data, or with --as-trained."""
    mean, std = manifest.normalisation["mean"], manifest.normalisation["std"]
    if store.manifest.vocabulary is not None or (store.mean, store.std) == (mean, std):
        return store
    return AsTrained(store, mean, std, None)


def read_as_trained(manifest: CheckpointManifest, folder: Path, store: Store) -> AsTrained:
    """Return data under the normalisation and in the words of the model of a checkpoint in `folder`.

    Raises:
        CheckpointError: if its words were not recorded, or are damaged.
    """
    words = None
    if store.manifest.vocabulary is not None:
        if checkpoint.WORDS not in manifest.files:
            raise CheckpointError(
                f"{folder}: holds no {checkpoint.WORDS}, as it was written by an older version: --as-trained cannot "
                "be had with it"
            )
        checkpoint.check(folder / checkpoint.WORDS, manifest.files[checkpoint.WORDS])
        words = (folder / checkpoint.WORDS).read_text().removesuffix("\n").split("\n")
    return AsTrained(store, manifest.normalisation["mean"], manifest.normalisation["std"], words)
