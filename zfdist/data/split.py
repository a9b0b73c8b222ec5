"""The index of a split: which recordings it has, how long each is, and in which shard it lies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from zfdist.data.manifest import IndexEntry, ShardCorrupt, SplitEntry, StoreError

REMEDY = "copy it again from an intact store, or remove the folder and run zfdist prepare again"


class Split:
    """A split's index. It holds the lengths, and labels if there are any; names stay on disk until asked for."""

    def __init__(self, root: Path, entry: SplitEntry) -> None:
        """Read the index of a split of the store in `root`; raises StoreError or ShardCorrupt if it is damaged."""
        self._path, self._entry = root / entry.index.path, entry.index
        table = self._table()
        self.lengths: NDArray[np.int64] = numbers(table["samples"].chunks)
        self.labels = numbers(table["label"].chunks) if "label" in table.column_names else None
        self.shards = entry.shards
        self.first_rows = np.cumsum([0, *(shard.rows for shard in entry.shards)])
        if len(self.lengths) != entry.recordings or self.first_rows[-1] != entry.recordings:
            raise StoreError(f"{self._path}: does not list the {entry.recordings} recordings; {REMEDY}")
        sizes = self.lengths
        if not sizes.size or (sizes.sum(), sizes.min(), sizes.max()) != (entry.samples, entry.shortest, entry.longest):
            raise StoreError(f"{self._path}: its lengths are not those of the manifest; {REMEDY}")

    def lengths_of(self, shard: int) -> NDArray[np.int64]:
        """Return the samples of each recording of a shard."""
        return self.lengths[self.first_rows[shard] : self.first_rows[shard + 1]]

    def names(self) -> list[str]:
        """Return the name of each recording; raises StoreError or ShardCorrupt if the index was damaged meanwhile."""
        names: list[str] = self._table()["name"].to_pylist()
        return names

    def _table(self) -> Any:
        """Map the index after checking its size and hash."""
        check_size(self._path, self._entry.bytes)
        with pa.memory_map(str(self._path)) as source:
            buffer = source.read_buffer()
        if xxhash.xxh3_128_hexdigest(memoryview(buffer)) != self._entry.xxh3_128:
            raise StoreError(f"{self._path}: damaged (its xxh3_128 is not the manifest's); {REMEDY}")
        return _readable(self._path, self._entry, buffer)


def _readable(path: Path, entry: IndexEntry, buffer: Any) -> Any:
    """Read an index; raises StoreError if it is none, whatever its hash is."""
    try:
        table = pa.ipc.open_file(buffer).read_all()
        table.validate(full=True)
        types = {field.name: str(field.type) for field in table.schema}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as Arrow ({error}); {REMEDY}") from None
    known = {"name": "large_string", "samples": "int64"}
    if types not in (known, known | {"label": "int64"}) or any(column.null_count for column in table.columns):
        raise StoreError(f"{path}: is no index of a split; {REMEDY}")
    return table


def check_size(path: Path, size: int) -> None:
    """Raise ShardCorrupt unless the file is there with the size that the manifest gives."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardCorrupt(f"{path}: {error.strerror}; {REMEDY}") from None
    if found != size:
        how = "empty" if found == 0 else "cut short" if found < size else "too long"
        raise ShardCorrupt(f"{path}: {how}: {found:,} bytes, the manifest says {size:,}; {REMEDY}")


def numbers(arrays: Iterable[Any]) -> NDArray[np.int64]:
    """Return the integers of Arrow arrays; Arrow's own `to_numpy` would import pandas, which takes a second."""
    return np.concatenate([np.empty(0, np.int64), *(np.from_dlpack(array) for array in arrays)])
