"""The store: what is written is read, exact statistics, gathering, finished shards."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import flip, make, noise, read_all

from zfdist.data import store_writer
from zfdist.data.manifest import Statistics
from zfdist.data.store import Store, StoreError, _windows
from zfdist.data.store_writer import Recording, finished_shard, write_shard


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training shards of several batches each."""
    monkeypatch.setattr(store_writer, "BATCH_BYTES", 1000)
    return make(tmp_path / "store", [noise(300, 301, 17, 900, 1), noise(400, 200, 333, seed=1)])


def test_reads_what_was_written(root: Path) -> None:
    written = [*noise(300, 301, 17, 900, 1), *noise(400, 200, 333, seed=1)]
    store = Store.open(root)
    assert all(np.array_equal(a, b) for a, b in zip(read_all(root), written, strict=True))
    assert store.names("train") == ["0/0", "0/1", "0/2", "0/3", "0/4", "1/0", "1/1", "1/2"]
    assert store.splits == ["train", "valid", "test"] and store.sample_rate == 16_000
    assert [len(shard.batches) for shard in store.manifest.splits["train"].shards] == [4, 3]
    assert not (root / "unfinished").exists()


def test_statistics_are_exact_and_of_the_training_split(root: Path) -> None:
    store, samples = Store.open(root), np.concatenate(read_all(root)).astype(np.float64)
    assert store.mean == pytest.approx(samples.mean(), rel=1e-14)
    assert store.std == pytest.approx(samples.std(), rel=1e-14)


def test_statistics_do_not_overflow_and_do_not_depend_on_blocks() -> None:
    loud = np.full(3000, -32768, np.int16)
    assert (
        Statistics.of(loud, block=7)
        == Statistics.of(loud)
        == Statistics(3000, -32768 * 3000, 3000 << 30, -32768, -32768)
    )
    # Blizzard's size times 2^30 does not fit into 64 bits.
    large = Statistics(18_136_056_064, 5, 18_136_056_064 << 30, -32768, 32767)
    assert large.merged(large).squares == 36_272_112_128 << 30 and large.std == pytest.approx(32768.0)
    assert Statistics().merged(large) == large == large.merged(Statistics())


def test_the_extremes_of_int16_survive(tmp_path: Path) -> None:
    extremes = np.array([-32768, 32767, 0, -1, 1], np.int16)
    assert np.array_equal(read_all(make(tmp_path / "s", [[extremes]]))[0], extremes)


def test_the_same_recordings_give_the_same_bytes_and_another_sharding_the_same_fingerprint(tmp_path: Path) -> None:
    rows = noise(500, 40, 999)
    one, same, cut = (make(tmp_path / n, r) for n, r in (("a", [rows]), ("b", [rows]), ("c", [rows[:1], rows[1:]])))
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(same) for p in same.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (same / f).read_bytes() for f in files)
    assert Store.open(one).fingerprint == Store.open(cut).fingerprint
    changed = [rows[0], rows[1], rows[2].copy()]
    changed[2][-1] += 1
    moved = [np.concatenate(rows[:2])[:501], np.concatenate(rows[:2])[501:], rows[2]]
    prints = {Store.open(make(tmp_path / f"d{i}", [r])).fingerprint for i, r in enumerate([changed, moved])}
    assert len(prints | {Store.open(one).fingerprint}) == 3


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_gather_equals_slicing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "gather"
    rows = [*noise(300, 5, 700, 64, 1), *noise(40, 41, seed=1), *noise(2500, 9, seed=2)]
    if not folder.exists():
        make(folder, [rows[:5], rows[5:7], rows[7:]])
    store = Store.open(folder, "size")
    width = data.draw(st.one_of(st.integers(1, 400), st.sampled_from([2500, 3000, 20_000])), label="width")
    picks = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=12), label="recordings")
    starts = [data.draw(st.integers(0, len(rows[i])), label="start") for i in picks]
    windows = store.gather("train", np.array(picks), np.array(starts), width)
    assert windows.shape == (len(picks), width) and windows.dtype == np.int16
    for window, recording, start in zip(windows, picks, starts, strict=True):
        expected = rows[recording][start : start + width]
        assert np.array_equal(window[: len(expected)], expected)


@given(
    size=st.integers(0, 12),
    width=st.integers(1, 14),
    starts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
)
def test_windows_at_the_end_of_a_file(size: int, width: int, starts: list[int]) -> None:
    flat = np.arange(1, size + 1, dtype=np.int16)
    inside = np.array([min(start, size) for start in starts])
    for window, start in zip(_windows(flat, inside, width), inside, strict=True):
        assert window.tolist() == [*range(start + 1, min(start + width, size) + 1), *[0] * (start + width - size)]


def test_gather_refuses_what_is_not_there(root: Path) -> None:
    store = Store.open(root)
    for recording, start in ((8, 0), (-1, 0), (0, -1), (0, 301)):
        with pytest.raises(IndexError):
            store.gather("train", np.array([recording]), np.array([start]), 10)
    with pytest.raises(StoreError, match=r"no split 'dev'; it has train, valid, test"):
        store.lengths("dev")


def test_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    message = r"no manifest\.json; run zfdist prepare speech --source DIR --out .*/none"
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path / "none")


def test_a_finished_shard_counts_only_for_the_same_key_and_undamaged(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "train-00000", "k", [Recording("a", noise(100)[0])], {"b": "empty file"})
    assert finished_shard(tmp_path, "train-00000", "k") == shard
    assert finished_shard(tmp_path, "train-00000", "other") is None
    assert finished_shard(tmp_path, "train-00001", "k") is None
    flip(tmp_path / shard.entry.path, 500)
    assert finished_shard(tmp_path, "train-00000", "k") is None
    (tmp_path / "unfinished" / "train-00000.done.json").write_text("{")
    assert finished_shard(tmp_path, "train-00000", "k") is None


def test_what_cannot_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="all samples of the training split are equal"):
        make(tmp_path / "a", [[np.zeros(10, np.int16)]])
    with pytest.raises(StoreError, match="split 'train' has no recording"):
        make(tmp_path / "b", [[]])
    with pytest.raises(ValueError, match="0/0: samples must be int16"):
        make(tmp_path / "c", [[np.zeros(10, np.int32)]])  # type: ignore[list-item]


def test_a_store_may_be_moved(root: Path, tmp_path: Path) -> None:
    before = read_all(root)
    shutil.move(root, tmp_path / "moved")
    assert all(np.array_equal(a, b) for a, b in zip(before, read_all(tmp_path / "moved"), strict=True))
