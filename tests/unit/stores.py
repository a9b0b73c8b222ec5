"""Small stores for the tests of the store, and how to read them whole."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import NO_LABEL, Kind
from zfdist.data.manifest import StoreManifest
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard

Pcm = NDArray[np.int16]


def make(root: Path, train: list[list[Pcm]], held_out: Pcm | None = None) -> Path:
    """Write a store whose training split has one shard for each list."""
    rest = np.arange(50, dtype=np.int16) if held_out is None else held_out
    shards = {
        "train": [
            write_shard(root, f"train-{i:05d}", "k", [Recording(f"{i}/{j}", r) for j, r in enumerate(rows)], {})
            for i, rows in enumerate(train)
        ],
        "valid": [write_shard(root, "valid-00000", "k", [Recording("v", rest)], {})],
        "test": [write_shard(root, "test-00000", "k", [Recording("t", rest)], {})],
    }
    publish(root, shards, sample_rate=16_000, source={}, licence="free")
    return root


def noise(*lengths: int, seed: int = 0) -> list[Pcm]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-32768, 32768, length, dtype=np.int16) for length in lengths]


def shard_file(root: Path, number: int = 0) -> Path:
    return root / StoreManifest.read(root).splits["train"].shards[number].path


def read_all(root: Path, verify: str = "first_use") -> list[Pcm]:
    store = Store.open(root, verify)
    lengths = store.lengths("train")
    rows = [store.gather("train", np.array([i]), np.array([0]), int(n))[0] for i, n in enumerate(lengths)]
    return rows


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def make_kind(
    root: Path,
    kind: Kind,
    rows: dict[str, list[list[int]]],
    *,
    labels: dict[str, list[int]] | None = None,
    words: list[str] | None = None,
) -> Path:
    """Write a store of images or sentences, one shard a split; the rows are called train-0, train-1 .."""
    shards = {}
    for split, some in rows.items():
        tags = labels[split] if labels else [NO_LABEL] * len(some)
        recordings = [
            Recording(f"{split}-{i}", np.array(row, kind.dtype), tag)
            for i, (row, tag) in enumerate(zip(some, tags, strict=True))
        ]
        shards[split] = [write_shard(root, f"{split}-00000", "k", recordings, {}, kind)]
    publish(root, shards, sample_rate=0, source={}, licence="", kind=kind, words=words)
    return root
