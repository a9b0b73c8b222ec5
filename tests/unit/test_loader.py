"""Batches: the same global batch at every world size, exact contents, padding, dummies, prefetching."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zfdist.config import DataConfig
from zfdist.data.loader import PADDED_FRAMES, Batch, TrainLoader, evaluation_batches
from zfdist.data.order import OrderError, view
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard

CPU = torch.device("cpu")
X = 20
CONFIG = DataConfig(frame_samples=X, segment_frames=10, global_batch=7, eval_batch=4, window_batches=3)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two training shards with recordings of 0 to 30 frames; one sample each of the least and greatest value."""
    root = tmp_path_factory.mktemp("ragged")
    rng = np.random.default_rng(3)

    def recordings(count: int) -> list[Recording]:
        made = [rng.integers(-3000, 3000, rng.integers(1, 31 * X), dtype=np.int16) for _ in range(count)]
        made[0][0], made[-1][-1] = -32768, 32767
        return [Recording(f"{i}", samples) for i, samples in enumerate(made)]

    shards = {
        "train": [write_shard(root, f"train-{i}", "k", recordings(15), {}) for i in range(2)],
        "valid": [write_shard(root, "valid-0", "k", recordings(13), {})],
        "test": [write_shard(root, "test-0", "k", recordings(5), {})],
    }
    publish(root, shards, sample_rate=16_000, source={}, licence="")
    return Store.open(root, "size")


def loader(
    store: Store, config: DataConfig = CONFIG, *, rank: int = 0, world: int = 1, accumulation: int = 1
) -> TrainLoader:
    return TrainLoader(store, config, seed=11, rank=rank, world_size=world, accumulation_steps=accumulation, device=CPU)


def by_hand(store: Store, config: DataConfig, split: str, kind: str, sequence: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [frames, X] of a sequence, by slicing its recording."""
    sequences = view(kind, store.lengths(split), config.frame_samples, config.segment_frames)
    recording = int(sequences.recordings[sequence])
    length = int(store.lengths(split)[recording])
    pcm = store.gather(split, np.array([recording]), np.array([0]), length)[0]
    start, frames = int(sequences.starts[sequence]), int(sequences.frames[sequence])
    cut = pcm[start : start + (frames + 1) * config.frame_samples].reshape(frames + 1, -1)
    normal = (torch.from_numpy(cut.copy()).float() - store.mean) / store.std
    return normal[:-1], normal[1:]


def check_rows(batch: Batch, store: Store, split: str, kind: str) -> None:
    """Every real row holds its sequence and zeros; every dummy row zeros only."""
    for row, (sequence, frames) in enumerate(zip(batch.ids_B.tolist(), batch.lengths_B.tolist(), strict=True)):
        x_TX, y_TX = batch.x_TBX[:, row], batch.y_TBX[:, row]
        assert (frames == 0) == (sequence == -1)
        assert not x_TX[frames:].any() and not y_TX[frames:].any()
        assert batch.mask_TB[:, row].sum() == frames and batch.mask_TB[:frames, row].all()
        if sequence >= 0:
            x, y = by_hand(store, CONFIG, split, kind, sequence)
            assert torch.equal(x_TX[:frames], x) and torch.equal(y_TX[:frames], y)


@pytest.mark.parametrize("kind", ["segments", "utterances"])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (3, 1), (7, 1), (9, 1), (1, 3), (2, 3), (4, 5)])
def test_ranks_share_out_one_global_batch(ragged: Store, kind: str, world: int, accumulation: int) -> None:
    config = DataConfig(
        frame_samples=X,
        segment_frames=10,
        global_batch=7,
        window_batches=3,
        train_view=kind,  # type: ignore[arg-type]
    )
    ranks = [loader(ragged, config, rank=r, world=world, accumulation=accumulation) for r in range(world)]
    sequences = view(kind, ragged.lengths("train"), X, 10)
    for step in (0, 1, ranks[0].batches_per_epoch - 1, ranks[0].batches_per_epoch, 100):
        ids = loader(ragged, config).global_ids(step)
        parts = [batch for rank in ranks for batch in rank.batches(step)]
        assert len(parts) == world * accumulation and len({part.x_TBX.shape for part in parts}) == 1
        assert parts[0].x_TBX.shape[0] == sequences.frames[ids].max()
        placed = [
            (place, sequence)
            for part in parts
            for place, sequence in zip(part.positions_B.tolist(), part.ids_B.tolist(), strict=True)
            if sequence >= 0
        ]
        assert sorted(placed) == list(enumerate(ids.tolist()))
        for part in parts:
            check_rows(part, ragged, "train", kind)
            assert part.num_sequences == 7 and part.num_frames == sequences.frames[ids].sum()
        for rank, one in enumerate(ranks):
            places = torch.cat([part.positions_B for part in one.batches(step)])
            assert (places % world == rank).all() and len(places) % accumulation == 0
            assert 7 / world <= len(places) < 7 / world + 1 + accumulation - 1


def test_types_and_shapes(ragged: Store) -> None:
    batch = loader(ragged, rank=1, world=2).batches(0)[0]
    assert batch.x_TBX.dtype == batch.y_TBX.dtype == torch.float32 and batch.x_TBX.shape == batch.y_TBX.shape
    assert {t.dtype for t in (batch.lengths_B, batch.positions_B, batch.ids_B)} == {torch.int64}
    assert batch.ids_B.tolist()[-1] == -1 and batch.lengths_B.tolist()[-1] == 0  # 7 rows over 2 ranks: one dummy


def test_full_batches_are_normalised_and_shifted_by_a_frame(ragged: Store) -> None:
    for step in range(30):
        batch = loader(ragged).batches(step)[0]
        check_rows(batch, ragged, "train", "segments")
        assert torch.equal(batch.x_TBX[1:][batch.mask_TB[1:]], batch.y_TBX[:-1][batch.mask_TB[1:]])


def test_iterating_equals_asking_for_steps(ragged: Store) -> None:
    one = loader(ragged, accumulation=2)
    for depth in (0, 1, 3, 64):
        config = DataConfig(
            frame_samples=X, segment_frames=10, global_batch=7, window_batches=3, prefetch_batches=depth
        )
        walked = list(loader(ragged, config, accumulation=2).iterate(5, 25))
        assert len(walked) == 20
        for step, batches in zip(range(5, 25), walked, strict=True):
            for a, b in zip(batches, one.batches(step), strict=True):
                assert torch.equal(a.ids_B, b.ids_B) and torch.equal(a.x_TBX, b.x_TBX) and torch.equal(a.y_TBX, b.y_TBX)


def prefetchers() -> int:
    return sum(thread.name.startswith("zfdist-prefetch") for thread in threading.enumerate())


def wait_for_prefetchers() -> int:
    deadline = time.monotonic() + 5
    while prefetchers() and time.monotonic() < deadline:
        time.sleep(0.01)
    return prefetchers()


def test_the_thread_ends_when_the_iterator_is_used_up_closed_or_dropped(ragged: Store) -> None:
    assert sum(1 for _ in loader(ragged).iterate(0, 10)) == 10 and wait_for_prefetchers() == 0
    batches = loader(ragged).iterate(0, 10**9)
    next(batches)
    assert prefetchers() == 1
    batches.close()  # type: ignore[attr-defined]
    assert wait_for_prefetchers() == 0
    batches = loader(ragged).iterate(0, 10**9)
    next(batches)
    del batches
    gc.collect()
    assert wait_for_prefetchers() == 0
    loader(ragged).iterate(0, 10)  # never started: no thread
    assert prefetchers() == 0


def test_what_goes_wrong_in_the_thread_is_raised_in_its_turn(ragged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Store.gather, []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise OSError("disk gone")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "gather", failing)
    batches = loader(ragged).iterate(0, 10)
    next(batches), next(batches)
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert wait_for_prefetchers() == 0


def test_prefetching_is_bounded(ragged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Store.gather, []

    def counting(*args: object) -> object:
        calls.append(args)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "gather", counting)
    batches = loader(ragged).iterate(0, 100)
    next(batches)
    time.sleep(0.2)
    assert len(calls) == 1 + CONFIG.prefetch_batches


@given(world=st.integers(1, 6), rows=st.integers(1, 9), kind=st.sampled_from(["segments", "utterances"]))
@settings(max_examples=25, deadline=None)
def test_evaluation_takes_every_sequence_once(ragged: Store, world: int, rows: int, kind: str) -> None:
    config = DataConfig(frame_samples=X, segment_frames=10, eval_batch=rows, eval_view=kind)  # type: ignore[arg-type]
    shares = [
        list(evaluation_batches(ragged, config, "valid", rank=r, world_size=world, device=CPU)) for r in range(world)
    ]
    sequences = view(kind, ragged.lengths("valid"), X, 10)
    batches = [batch for share in shares for batch in share]
    assert sorted(i for batch in batches for i in batch.ids_B.tolist()) == list(range(len(sequences)))
    for batch in batches:
        check_rows(batch, ragged, "valid", kind)
        assert len(batch.ids_B) == batch.num_sequences <= rows and batch.num_frames == batch.lengths_B.sum()
        assert torch.equal(batch.positions_B, batch.ids_B) and batch.x_TBX.shape[0] == batch.lengths_B.max()
    alone = evaluation_batches(ragged, config, "valid", rank=0, world_size=1, device=CPU)
    assert {tuple(b.ids_B.tolist()) for b in alone} == {tuple(b.ids_B.tolist()) for b in batches}


def test_evaluation_bounds_the_padded_frames(tmp_path: Path) -> None:
    long, short = np.zeros(2 * PADDED_FRAMES, np.int16), np.zeros(PADDED_FRAMES // 3 + 1, np.int16)
    split = [Recording("long", long), *(Recording(f"{i}", short) for i in range(7))]
    train = [Recording("t", np.arange(9, dtype=np.int16))]
    shards = {
        n: [write_shard(tmp_path, n, "k", train if n == "train" else split, {})] for n in ("train", "valid", "test")
    }
    publish(tmp_path, shards, sample_rate=16_000, source={}, licence="")
    config = DataConfig(frame_samples=1, eval_batch=100, eval_view="utterances")
    batches = list(evaluation_batches(Store.open(tmp_path, "size"), config, "test", rank=0, world_size=1, device=CPU))
    assert [batch.num_sequences for batch in batches] == [1, 3, 3, 1]


def test_a_store_too_small_for_a_batch(ragged: Store) -> None:
    with pytest.raises(OrderError, match=r"data\.global_batch = 500"):
        loader(ragged, DataConfig(frame_samples=X, global_batch=500))
