"""Reading a store: Arrow IPC shards of recordings, mapped and checked, gathered a batch at a time.

A row is called a recording and its elements samples, be it sound, an image or a sentence. A shard is mapped whole and
seen as one flat vector of the kind's type with the start of every recording in it, so that any window of any recording
is a slice and a batch is one indexing call. Arrow has no checksums and a file cut short while mapped kills the process;
so sizes are checked before mapping, hashes when a shard is first used, and shards never change.
"""

import hashlib
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from zfdist.data.cache import Cache, is_verified, remember
from zfdist.data.kinds import KINDS, Kind
from zfdist.data.manifest import BatchEntry, ShardCorrupt, ShardEntry, StoreError, StoreManifest
from zfdist.data.split import REMEDY, Split, check_size, numbers
from zfdist.object_store import CACHE, is_remote

__all__ = ["ShardCorrupt", "Store", "StoreError"]


class Shard(NamedTuple):
    """A mapped shard: `flat` is the whole file as samples, recording i of the shard begins at `flat[starts[i]]`."""

    flat: NDArray[Any]
    starts: NDArray[np.int64]


class Store:
    """A prepared data set, read only; safe to use from several threads."""

    def __init__(self, root: Path, manifest: StoreManifest, verify: str, cache: Cache | None = None) -> None:
        """Use `Store.open`."""
        self.root = root
        self.manifest = manifest
        self.kind: Kind = KINDS[manifest.kind]
        self._verify = verify
        self._cache = cache
        self._lock = threading.Lock()
        self._splits = {name: Split(root, entry) for name, entry in manifest.splits.items()}
        self._shards: dict[tuple[str, int], Shard] = {}

    @staticmethod
    def open(root: Path | str, verify: str = "first_use", cache: Path | str = CACHE) -> "Store":
        """Open the store in folder `root` after checking its manifest, its index and the size of every shard.

        If `root` is a URI (s3://BUCKET/PREFIX), files are fetched to this node's folder `cache` when first used.

        `verify`: "size" checks no more; "first_use" also hashes a shard when it is first used by this user on this
        machine; "always" hashes it when it is first used by this process. Raises StoreError (no or bad manifest),
        ShardCorrupt, or StorageError.
        """
        if is_remote(root):
            return _open_remote(Cache(str(root), Path(cache)), verify)
        root = Path(root)
        manifest = StoreManifest.read(root)
        for split in manifest.splits.values():
            for entry in split.shards:
                check_size(root / entry.path, entry.bytes)
        if manifest.vocabulary is not None:
            check_size(root / manifest.vocabulary.path, manifest.vocabulary.bytes)
        return Store(root, manifest, verify)

    @property
    def fingerprint(self) -> str:
        """Identity of the data: equal exactly if all samples and labels of all splits are, and the vocabulary."""
        return self.manifest.fingerprint

    @property
    def mean(self) -> float:
        """What is subtracted from a sample: sound: the mean of the training samples, in PCM units; others: 0."""
        return self.manifest.normalisation.mean

    @property
    def std(self) -> float:
        """What a sample is divided by: sound: the standard deviation of the training samples; others: 1."""
        return self.manifest.normalisation.std

    @property
    def sample_rate(self) -> int:
        """Samples a second; 0 where the rows are no sound."""
        return self.manifest.sample_rate

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._splits)

    def frame_size(self, frame_samples: int) -> int:
        """Return the values of a frame of `frame_samples` samples, or (sentences) how many words there are."""
        vocabulary = self.manifest.vocabulary
        return frame_samples if vocabulary is None else vocabulary.words

    def lengths(self, split: str) -> NDArray[np.int64]:
        """Return the samples of each recording of a split; raises StoreError for an unknown split."""
        return self._split(split).lengths

    def names(self, split: str) -> list[str]:
        """Return the name of each recording of a split; raises StoreError for an unknown split."""
        return self._split(split).names()

    def labels(self, split: str) -> NDArray[np.int64] | None:
        """Return the label of each recording of a split, -1 where unknown; None if these data have no labels."""
        return self._split(split).labels

    def vocabulary(self) -> list[str]:
        """Return the words of a store of sentences in the order of their ids, `<pad> <s> </s> <unk>` first.

        Raises StoreError if this store holds no sentences, or the file is damaged.
        """
        entry = self.manifest.vocabulary
        if entry is None:
            raise StoreError(f"{self.root}: holds {self.kind.name}, which has no vocabulary")
        content = (self.root / entry.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise StoreError(f"{self.root / entry.path}: damaged (its sha256 is not the manifest's); {REMEDY}")
        return content.decode().removesuffix("\n").split("\n")

    def gather(self, split: str, recordings: NDArray[np.int64], starts: NDArray[np.int64], width: int) -> NDArray[Any]:
        """Copy windows [len(recordings), width] that begin `starts` samples into the given recordings of a split.

        Their type is the kind's: int16 (sound), uint8 (images), uint16 (sentences).
        What a window holds past the end of its recording is unspecified: mask it by length. Raises IndexError for a
        recording or start that does not exist, ShardCorrupt for a damaged shard.
        """
        source = self._split(split)
        if len(recordings) and not (recordings.min() >= 0 and recordings.max() < len(source.lengths)):
            raise IndexError(f"{split}: recordings must be 0 to {len(source.lengths) - 1}")
        if len(recordings) and not (starts.min() >= 0 and (starts <= source.lengths[recordings]).all()):
            raise IndexError(f"{split}: windows must start inside their recording")
        shard_of = np.searchsorted(source.first_rows, recordings, side="right") - 1
        rows = recordings - source.first_rows[shard_of]
        used = np.unique(shard_of)
        if len(used) == 1:
            shard = self._shard(split, int(used[0]))
            return _windows(shard.flat, shard.starts[rows] + starts, width)
        windows = np.empty((len(recordings), width), self.kind.dtype)
        for number in used:
            shard = self._shard(split, int(number))
            here = np.flatnonzero(shard_of == number)
            windows[here] = _windows(shard.flat, shard.starts[rows[here]] + starts[here], width)
        return windows

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            raise StoreError(f"{self.root}: no split {name!r}; it has {', '.join(self._splits)}")
        return self._splits[name]

    def _shard(self, name: str, number: int) -> Shard:
        """Return a shard of a split, checked and mapped at the first call."""
        shard = self._shards.get((name, number))
        if shard is not None:
            return shard
        with self._lock:
            split = self._splits[name]
            entry = split.shards[number]
            lengths = split.lengths_of(number)
            path = self.root / entry.path
            if self._cache is not None:
                self._cache.fetch(entry.path, entry.bytes, entry.xxh3_128)
            try:
                shard = map_shard(path, entry, self.kind, lengths, self._verify)
            except ShardCorrupt:
                if self._cache is None:
                    raise
                self._cache.fetch(entry.path, entry.bytes, entry.xxh3_128, again=True)
                shard = map_shard(path, entry, self.kind, lengths, self._verify)
            self._shards[name, number] = shard
        return shard


def _open_remote(cache: Cache, verify: str) -> Store:
    """Open a store of which this node has or gets a copy: its manifest, indices and vocabulary now."""
    manifest = StoreManifest.read(cache.root)
    for split in manifest.splits.values():
        cache.fetch(split.index.path, split.index.bytes, split.index.xxh3_128)
    if manifest.vocabulary is not None:
        cache.fetch(manifest.vocabulary.path, manifest.vocabulary.bytes)
    return Store(cache.root, manifest, verify, cache)


def _windows(flat: NDArray[Any], starts: NDArray[np.int64], width: int) -> NDArray[Any]:
    """Copy `flat[s : s + width]` for each s in one call; windows that reach past the end are filled up with 0."""
    last = flat.size - width
    beyond = starts > last
    every = as_strided(flat, (max(last, 0) + 1, width if last >= 0 else 0), flat.strides * 2, writeable=False)
    if not beyond.any():
        return np.asarray(every[starts])
    windows = np.zeros((len(starts), width), flat.dtype)
    if last >= 0:
        windows[~beyond] = every[starts[~beyond]]
    for row in np.flatnonzero(beyond):
        tail = flat[starts[row] :]
        windows[row, : tail.size] = tail
    return windows


def map_shard(path: Path, entry: ShardEntry, kind: Kind, lengths: NDArray[np.int64], verify: str) -> Shard:
    """Map a shard of recordings of `lengths` samples and find where each begins; raises ShardCorrupt.

    `verify` as in `Store.open`; "unmarked" hashes it and leaves no note of it.
    """
    check_size(path, entry.bytes)
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()
    if verify == "always" or (verify == "first_use" and not is_verified(path, entry)):
        _check_hash(path, entry, memoryview(buffer))
        remember(path, entry)
    elif verify == "unmarked":
        _check_hash(path, entry, memoryview(buffer))
    starts = []
    try:
        reader = pa.ipc.open_file(pa.BufferReader(buffer))
        for number in range(reader.num_record_batches):
            column = reader.get_batch(number).column(0)
            if not _is_of(column, kind):
                raise ShardCorrupt(f"{path}: batch {number} is {column.type}, not {kind.dtype} rows; {REMEDY}")
            base = (column.values.buffers()[1].address - buffer.address) // kind.dtype.itemsize
            starts.append(base + _offsets(column))
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ShardCorrupt(f"{path}: not readable as Arrow ({error}); {REMEDY}") from None
    if not np.array_equal(np.concatenate([np.diff(s) for s in starts] or [np.empty(0, np.int64)]), lengths):
        raise ShardCorrupt(f"{path}: holds other recordings than the index lists (swapped shards?); {REMEDY}")
    flat = np.frombuffer(buffer, kind.dtype, count=buffer.size // kind.dtype.itemsize)
    return Shard(flat, np.concatenate([s[:-1] for s in starts]))


def _is_of(column: Any, kind: Kind) -> bool:
    """Tell whether a column holds rows of a kind, and no nulls."""
    is_list = pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    return bool(is_list and column.values.type == pa.from_numpy_dtype(kind.dtype) and not column.null_count)


def _offsets(column: Any) -> NDArray[np.int64]:
    """Return where each row of a column begins, and the last one ends, counted from the first."""
    if pa.types.is_fixed_size_list(column.type):
        return np.arange(len(column) + 1, dtype=np.int64) * int(column.type.list_size)
    return numbers([column.offsets])


def _check_hash(path: Path, entry: ShardEntry, content: memoryview) -> None:
    """Raise ShardCorrupt, naming the damaged batch and its bytes, unless the content has the manifest's hash."""
    if xxhash.xxh3_128_hexdigest(content) == entry.xxh3_128:
        return

    def is_damaged(batch: BatchEntry) -> bool:
        return xxhash.xxh3_128_hexdigest(content[batch.offset : batch.offset + batch.bytes]) != batch.xxh3_128

    damaged = [(number, batch) for number, batch in enumerate(entry.batches) if is_damaged(batch)]
    if not damaged:
        raise ShardCorrupt(f"{path}: damaged outside its batches, in the header or footer; {REMEDY}")
    number, batch = damaged[0]
    raise ShardCorrupt(
        f"{path}: batch {number} (bytes {batch.offset} to {batch.offset + batch.bytes}) is damaged, "
        f"{len(damaged)} of {len(entry.batches)} batches in all, {sum(b.rows for _, b in damaged)} recordings; {REMEDY}"
    )
