"""A model on data that it was not trained on: refused by name, or read as it was trained."""

import dataclasses
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import torch

from zfdist import train, world
from zfdist.checkpoint import data_identity
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.data_identity import OtherDataError
from zfdist.data.as_trained import AsTrained, vocabulary_sha256
from zfdist.data.kinds import SPECIALS, TOKENS, UNKNOWN
from zfdist.data.loader import evaluation_batches
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard
from zfdist.evaluation.evaluate import data_of, load_model, on_split
from zfdist.evaluation.results import Question
from zfdist.run_protocol import Weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound of the same kind, of another mean and standard deviation."""
    return harness.make_store(tmp_path_factory.mktemp("other") / "data", seed=1)


def text(root: Path, words: list[str], sentences: list[list[int]]) -> Store:
    """Write a store of the same sentences in every split."""
    recordings = [Recording(str(i), np.array(ids, np.uint16)) for i, ids in enumerate(sentences)]
    shards = {split: [write_shard(root, f"{split}-0", "k", recordings, {}, TOKENS)] for split in ("train", "valid")}
    publish(root, shards, sample_rate=0, source={"converter": "test"}, licence="none", kind=TOKENS, words=words)
    return Store.open(root)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("normalisation", {"mean": 1.0, "std": 1.0}, "its units differ; .* pass --as-trained"),
        ("sample_rate", 8000, "prepare the data with --sample-rate 8000"),
        ("data_kind", "tokens", "holds pcm16, and the model was trained on tokens"),
        ("data_kind", None, None),
        ("sample_rate", None, None),
    ],
)
def test_what_differs_is_named(trained: Path, store: Path, field: str, value: Any, message: str | None) -> None:
    loaded = load_model(trained)
    manifest = dataclasses.replace(loaded.manifest, data_fingerprint="other", **{field: value})
    if message is None:
        data_of(loaded._replace(manifest=manifest))
        return
    with pytest.raises(OtherDataError, match=message):
        data_of(loaded._replace(manifest=manifest))


def test_another_vocabulary_is_named(tmp_path: Path, trained: Path) -> None:
    first = text(tmp_path / "a", ["blue", "red"], [[4, 5]])
    second = text(tmp_path / "b", ["red", "blue"], [[4, 5]])  # as many words: no size tells them apart
    manifest = dataclasses.replace(
        load_model(trained).manifest,
        normalisation={"mean": 0.0, "std": 1.0}, data_fingerprint=first.fingerprint, x_dim=6,
        vocabulary_sha256=vocabulary_sha256(first),
    )  # fmt: skip
    data_identity.refuse_other_units(manifest, first)
    with pytest.raises(OtherDataError, match=r"another vocabulary \(6 words\) than that of .*b \(6\)"):
        data_identity.refuse_other_units(manifest, second)
    of_before = dataclasses.replace(manifest, vocabulary_sha256=None)
    data_identity.refuse_other_units(of_before, first)
    with pytest.raises(OtherDataError, match="which its checkpoint does not say"):
        data_identity.refuse_other_units(of_before, second)


def test_sentences_are_read_in_the_words_of_the_model(tmp_path: Path) -> None:
    """What is written with other numbers means the same words; those that the model does not know are <unk>."""
    theirs = text(tmp_path / "theirs", ["red", "green", "blue"], [[4, 5, 6], [6, 6]])
    seen = AsTrained(theirs, 0.0, 1.0, [*SPECIALS, "blue", "red"])
    read = seen.gather("train", np.array([0]), np.array([0]), 3)
    assert read.tolist() == [[5, UNKNOWN, 4]] and read.dtype == np.uint16
    assert seen.frame_size(1) == 6 and seen.vocabulary()[4:] == ["blue", "red"]
    mine = text(tmp_path / "mine", ["blue", "red"], [[4, 5], [5]])
    assert vocabulary_sha256(seen) == vocabulary_sha256(mine) != vocabulary_sha256(theirs)


def test_sound_is_read_in_the_units_of_the_model(trained: Path, other: Path) -> None:
    loaded = load_model(trained)
    loaded = loaded._replace(config=loaded.config.with_values({"data.root": str(other)}))
    with pytest.raises(OtherDataError, match="units differ"):
        data_of(loaded)
    seen, own, data = data_of(loaded, as_trained=True), Store.open(other), loaded.config.data
    units = loaded.manifest.normalisation
    given, plain = (
        next(evaluation_batches(store, data, "test", rank=0, world_size=1, device=CPU)) for store in (seen, own)
    )
    expected_TBX = (plain.y_TBX * own.std + own.mean - units["mean"]) / units["std"]
    assert torch.allclose(given.y_TBX[given.mask_TB], expected_TBX[plain.mask_TB], atol=1e-5)
    result = on_split(loaded, Question(split="test", seeds=[1], as_trained=True)).result
    assert (result.mean, result.std) == (units["mean"], units["std"])


def test_a_run_goes_on_with_weights_in_their_units(trained: Path, other: Path, tmp_path: Path) -> None:
    """And after an interruption, and in evaluation, without being told again."""
    config = harness.tiny_config(other, train__steps=1)
    with pytest.raises(OtherDataError, match=r"its units differ.*--as-trained"):
        train.train(config, tmp_path / "run", world.connect(), harness.Recorder(), Weights(str(trained)))
    frames = config.with_values({"data.frame_samples": 10})
    with pytest.raises(OtherDataError, match=r"data\.frame_samples = 10: the model has 20"):
        train.train(frames, tmp_path / "run", world.connect(), harness.Recorder(), Weights(str(trained)))
    assert not (tmp_path / "run/checkpoints").exists()
    run = tmp_path / "run"
    train.train(config, run, world.connect(), harness.Recorder(), Weights(str(trained), as_trained=True))
    train.train(config.with_values({"train.steps": 2}), run, world.connect(), harness.Recorder())
    units = checkpoint.read_manifest(checkpoint.folder_of(run, 2)).normalisation
    assert units == load_model(trained).manifest.normalisation
    assert data_of(load_model(run)).mean == units["mean"] != Store.open(other).mean
