"""Stores of images and sentences: round trips, labels, vocabulary, batches, and what they refuse."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import flip, make_kind, shard_file

from zfdist.config import DataConfig
from zfdist.data import store_writer
from zfdist.data.kinds import BITS, END, PAD, SPECIALS, START, TOKENS, UNKNOWN, Kind
from zfdist.data.loader import Batch, TrainLoader, evaluation_batches
from zfdist.data.order import OrderError
from zfdist.data.store import ShardCorrupt, Store, StoreError
from zfdist.data.views import sequences_of

CPU = torch.device("cpu")
SMALL = dataclasses.replace(BITS, width=6)
WORDS = ["the", "film", "is", "good"]
CONFIG = DataConfig(
    frame_samples=1, train_view="utterances", eval_view="utterances", global_batch=3, eval_batch=4, window_batches=2
)

images = st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=3, max_size=9)
sentences = st.lists(st.lists(st.integers(3, 65_535), min_size=1, max_size=17), min_size=3, max_size=9)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def splits(rows: list[list[int]]) -> dict[str, list[list[int]]]:
    return {"train": rows, "valid": rows[:2], "test": rows[:1]}


def stored(root: Path, kind: Kind, rows: list[list[int]], labels: list[int] | None = None) -> Store:
    tags = labels and {"train": labels, "valid": labels[:2], "test": labels[:1]}
    make_kind(root, kind, splits(rows), labels=tags or None, words=WORDS if kind == TOKENS else None)
    return Store.open(root, "always")


def batches(store: Store, config: DataConfig = CONFIG, world: int = 2) -> Iterator[Batch]:
    """All training batches of an epoch, of all ranks, then all of evaluation of the training split."""
    for rank in range(world):
        args = {"seed": 5, "rank": rank, "world_size": world, "accumulation_steps": 1, "device": CPU}
        loader = TrainLoader(store, config, **args)  # type: ignore[arg-type]
        for made in loader.iterate(0, loader.batches_per_epoch):
            yield from made
        yield from evaluation_batches(store, config, "train", rank=rank, world_size=world, device=CPU)


@given(rows=images, label=st.integers(-1, 9))
@settings(max_examples=15, deadline=None)
def test_images_come_back_as_they_went_in(
    rows: list[list[int]], label: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = stored(tmp_path_factory.mktemp("bits"), SMALL, rows, [label] * len(rows))
    assert (store.mean, store.std, store.sample_rate) == (0.0, 1.0, 0)
    everything = store.gather("train", np.arange(len(rows)), np.zeros(len(rows), np.int64), 6)
    assert everything.dtype == np.uint8 and everything.tolist() == rows
    assert store.manifest.splits["train"].statistics.mean == pytest.approx(np.mean(rows))
    for batch in batches(store):
        assert batch.x_TBX.dtype == batch.y_TBX.dtype == torch.float32
        assert batch.x_TBX.shape[0] == 6 and batch.x_TBX.shape[2] == 1
        assert not batch.x_TBX[0].any() and batch.num_frames == 6 * batch.num_sequences
        assert (batch.labels_B is None) == (label == -1)
        for row, i in enumerate(batch.ids_B.tolist()):
            if i >= 0:
                assert batch.y_TBX[:, row, 0].tolist() == rows[i] and batch.x_TBX[1:, row, 0].tolist() == rows[i][:-1]
                assert batch.labels_B is None or batch.labels_B[row] == label
            else:
                assert not batch.y_TBX[:, row].any() and batch.lengths_B[row] == 0
                assert batch.labels_B is None or batch.labels_B[row] == -1


@given(rows=sentences, data=st.data())
@settings(max_examples=15, deadline=None)
def test_sentences_come_back_as_they_went_in(
    rows: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = data.draw(st.lists(st.integers(-1, 3), min_size=len(rows), max_size=len(rows)))
    store = stored(tmp_path_factory.mktemp("tokens"), TOKENS, rows, labels)
    assert store.vocabulary() == [*SPECIALS, *WORDS]
    assert store.frame_size(1) == 8 == len(store.vocabulary())
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3) and (store.mean, store.std) == (0.0, 1.0)
    assert sequences_of(store, CONFIG, "train", "utterances").frames.tolist() == [len(row) + 1 for row in rows]
    has_labels = any(label != -1 for label in labels)
    for batch in batches(store):
        assert batch.x_TBX.dtype == batch.y_TBX.dtype == torch.int64 and batch.x_TBX.ndim == 2
        for row, (i, length) in enumerate(zip(batch.ids_B.tolist(), batch.lengths_B.tolist(), strict=True)):
            words = rows[i] if i >= 0 else []
            assert length == (len(words) + 1 if i >= 0 else 0)
            assert batch.x_TBX[:length, row].tolist() == ([START, *words] if i >= 0 else [])
            assert batch.y_TBX[:length, row].tolist() == ([*words, END] if i >= 0 else [])
            assert not batch.x_TBX[length:, row].any() and not batch.y_TBX[length:, row].any()
            assert (batch.labels_B is not None) == has_labels
            if batch.labels_B is not None:
                assert batch.labels_B[row] == (labels[i] if i >= 0 else -1)


def test_the_scored_steps_are_counted(tmp_path: Path) -> None:
    rows = [[5, 6], [4, 4, 4], [7]]
    (batch,) = evaluation_batches(stored(tmp_path, TOKENS, rows), CONFIG, "train", rank=0, world_size=1, device=CPU)
    assert batch.num_frames == 3 + 4 + 2 == int(batch.mask_TB.sum()) and batch.labels_B is None


def test_images_are_evaluated_as_many_at_a_time_as_was_asked_for(tmp_path: Path) -> None:
    rows = np.eye(60, 784, dtype=int).tolist()
    store = stored(tmp_path, BITS, rows)
    config = dataclasses.replace(CONFIG, eval_batch=60)
    (batch,) = evaluation_batches(store, config, "train", rank=0, world_size=1, device=CPU)
    assert batch.num_frames == 60 * 784


def test_rows_of_several_batches_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "BATCH_BYTES", 20)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, (50, 6)).tolist()
    store = stored(tmp_path / "bits", SMALL, rows)
    assert len(store.manifest.splits["train"].shards[0].batches) == 17
    picks = rng.permutation(50)
    assert store.gather("train", picks, np.zeros(50, np.int64), 6).tolist() == [rows[i] for i in picks]


def test_the_fingerprint_covers_labels_and_vocabulary(tmp_path: Path) -> None:
    rows = [[3, 4], [5], [6, 7]]
    prints = {
        stored(tmp_path / "plain", TOKENS, rows).fingerprint,
        stored(tmp_path / "labels", TOKENS, rows, [0, 1, 1]).fingerprint,
        stored(tmp_path / "others", TOKENS, rows, [0, 1, 0]).fingerprint,
        Store.open(make_kind(tmp_path / "words", TOKENS, splits(rows), words=[*WORDS[::-1]])).fingerprint,
        stored(tmp_path / "moved", TOKENS, [[3], [4, 5], [6, 7]]).fingerprint,
    }
    assert len(prints) == 5
    assert stored(tmp_path / "unknown", TOKENS, rows, [-1, -1, -1]).fingerprint in prints


def test_what_does_not_fit_the_kind_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path / "bits", SMALL, [[0, 1, 0, 1, 1, 1]] * 4)
    message = r"data\.frame_samples = 200: must be 1 for data/speech, which holds bits; set --data\.frame-samples 1"
    with pytest.raises(OrderError, match=message):
        next(batches(store, DataConfig(train_view="utterances")))
    with pytest.raises(OrderError, match=r"view 'segments': .* whose rows are not cut; set --data\.train-view utter"):
        next(batches(store, DataConfig(frame_samples=1)))
    with pytest.raises(StoreError, match="holds bits, which has no vocabulary"):
        store.vocabulary()
    with pytest.raises(ValueError, match="train-0: samples must be uint8 and 6, got 5"):
        make_kind(tmp_path / "narrow", SMALL, splits([[1] * 5] * 3))
    with pytest.raises(ValueError, match="words be given for words alone"):
        make_kind(tmp_path / "bare", TOKENS, splits([[1] * 5] * 3))


def test_damage_to_the_other_kinds_is_named(tmp_path: Path) -> None:
    root = stored(tmp_path / "tokens", TOKENS, [[4, 5, 6]] * 5).root
    words = root / "vocabulary.txt"
    before = words.read_bytes()
    words.write_bytes(before.replace(b"film", b"fiim"))
    with pytest.raises(StoreError, match=r"vocabulary\.txt: damaged \(its sha256 is not the manifest's\)"):
        Store.open(root).vocabulary()
    words.write_bytes(before[:-1])
    with pytest.raises(StoreError, match=r"vocabulary\.txt: cut short"):
        Store.open(root)
    words.write_bytes(before)
    tree = json.loads((root / "manifest.json").read_text())
    for changed, message in (
        ({"kind": "colours"}, "kind is 'colours', this version reads pcm16, bits, tokens"),
        ({"kind": "bits"}, "fingerprint does not follow"),
        ({"vocabulary": tree["vocabulary"] | {"sha256": "0"}}, "fingerprint does not follow"),
        ({"normalisation": {"split": "train", "mean": 0.5, "std": 1.0}}, "normalisation does not follow"),
    ):
        (root / "manifest.json").write_text(json.dumps(tree | changed))
        with pytest.raises(StoreError, match=message):
            Store.open(root)
    (root / "manifest.json").write_text(json.dumps(tree))
    shard = tree["splits"]["train"]["shards"][0]["batches"][0]
    flip(shard_file(root), shard["offset"] + shard["bytes"] - 30)
    with pytest.raises(ShardCorrupt, match=r"batch 0 \(bytes"):
        Store.open(root, "always").gather("train", np.array([0]), np.array([0]), 3)
