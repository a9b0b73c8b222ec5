"""Every damage to a store is named: shards, index, manifest."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import flip, make, noise, read_all, shard_file

from zfdist.data import store_writer
from zfdist.data.manifest import StoreManifest
from zfdist.data.store import ShardCorrupt, Store, StoreError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training shards of several batches each."""
    monkeypatch.setattr(store_writer, "BATCH_BYTES", 1000)
    return make(tmp_path / "store", [noise(300, 301, 17, 900, 1), noise(400, 200, 333, seed=1)])


def cut_by_one(root: Path) -> None:
    path = shard_file(root)
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_nothing(root: Path) -> None:
    shard_file(root).write_bytes(b"")


def too_long(root: Path) -> None:
    shard_file(root).write_bytes(shard_file(root).read_bytes() + b"\0")


def flip_in_second_batch(root: Path) -> None:
    batch = StoreManifest.read(root).splits["train"].shards[0].batches[1]
    flip(shard_file(root), batch.offset + batch.bytes - 100)


def flip_magic(root: Path) -> None:
    flip(shard_file(root), 0)


def flip_footer(root: Path) -> None:
    flip(shard_file(root), -20)


def zero_a_quarter(root: Path) -> None:
    content = shard_file(root).read_bytes()
    size = len(content) // 4
    shard_file(root).write_bytes(content[:size] + bytes(size) + content[2 * size :])


def remove(root: Path) -> None:
    shard_file(root).unlink()


def swap(root: Path) -> None:
    a, b = shard_file(root), shard_file(root, 1)
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_by_one, r"train-00000-\w+\.arrow: cut short: [\d,]+ bytes, the manifest says [\d,]+; copy it again"),
        (cut_to_nothing, r"empty: 0 bytes"),
        (too_long, r"too long"),
        (remove, r"train-00000-\w+\.arrow: No such file"),
        (flip_in_second_batch, r"arrow: batch 1 \(bytes \d+ to \d+\) is damaged, 1 of 4 batches in all, 2 recordings"),
        (flip_magic, r"damaged outside its batches, in the header or footer"),
        (flip_footer, r"damaged outside its batches"),
        (zero_a_quarter, r"batch \d \(bytes"),
        (swap, r"too long|cut short"),
    ],
)
@pytest.mark.parametrize("verify", ["first_use", "always"])
def test_damage_is_named(root: Path, damage: Callable[[Path], None], message: str, verify: str) -> None:
    damage(root)
    with pytest.raises(ShardCorrupt, match=message):
        read_all(root, verify)


def test_swapped_shards_of_one_size_are_told_by_hash_and_by_index(tmp_path: Path) -> None:
    root = make(tmp_path / "s", [noise(300, 200), noise(200, 300, seed=1)])
    assert shard_file(root).stat().st_size == shard_file(root, 1).stat().st_size
    swap(root)
    with pytest.raises(ShardCorrupt, match="batch 0"):
        read_all(root)
    with pytest.raises(ShardCorrupt, match="other recordings than the index lists"):
        read_all(root, "size")


def test_size_alone_misses_a_flipped_bit_and_reports_a_broken_footer(root: Path) -> None:
    flip_in_second_batch(root)
    read_all(root, "size")
    content = bytearray(shard_file(root).read_bytes())
    content[-200:-10] = bytes(190)
    shard_file(root).write_bytes(content)
    with pytest.raises(ShardCorrupt, match=r"not readable as Arrow|other recordings"):
        read_all(root, "size")


def test_first_use_hashes_once_for_the_same_file(root: Path, cache: Path) -> None:
    read_all(root)
    assert len(list((cache / "zfdist" / "verified").iterdir())) == 2
    path = shard_file(root)
    times = path.stat()
    flip_in_second_batch(root)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    read_all(root)  # the same inode, size and time: believed
    with pytest.raises(ShardCorrupt):
        read_all(root, "always")
    os.utime(path)
    with pytest.raises(ShardCorrupt):
        read_all(root)


def test_a_cache_that_cannot_be_written_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    read_all(root)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 2, "format is 2, this version reads 1"),
        ("sample_rate", "16k", "sample_rate: must be"),
        ("sample_rate", 8000, "fingerprint does not follow"),
        ("fingerprint", "0", "fingerprint does not follow"),
        ("normalisation", {"split": "train", "mean": 0.0, "std": 1.0}, "normalisation does not follow"),
        ("normalisation", {"split": "dev", "mean": 0.0, "std": 1.0}, "'dev', which is absent"),
        ("splits", {}, "'train', which is absent"),
        ("surplus", 1, r"unknown fields \['surplus'\]"),
    ],
)
def test_an_edited_manifest_is_refused(root: Path, name: str, value: object, message: str) -> None:
    tree = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(tree | {name: value}))
    with pytest.raises(StoreError, match=message):
        Store.open(root)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff"])
def test_a_damaged_manifest_is_refused(root: Path, content: str) -> None:
    (root / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"manifest\.json"):
        Store.open(root)


def test_a_damaged_index_is_refused(root: Path) -> None:
    flip(root / "index-train.arrow", 300)
    with pytest.raises(StoreError, match=r"index-train\.arrow: damaged"):
        Store.open(root)
