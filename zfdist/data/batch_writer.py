"""Recordings to the record batches of a shard: Arrow IPC, without nulls, so that a reader maps plain numbers."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zfdist.data.kinds import NO_LABEL, Kind
from zfdist.data.manifest import Statistics


@dataclass(frozen=True)
class Recording:
    """A recording to be written: its name, unique in the store, its samples (at least one, of the kind's type)."""

    name: str
    samples: NDArray[Any]
    label: int = NO_LABEL


def schema(kind: Kind) -> Any:
    """Return the Arrow schema of a shard: one column, a list of samples a row."""
    item = pa.field("item", pa.from_numpy_dtype(kind.dtype), nullable=False)
    rows = pa.large_list(item) if kind.width is None else pa.list_(item, kind.width)
    return pa.schema([pa.field(kind.column, rows, nullable=False)])


class BatchWriter:
    """Collects recordings into record batches of about `batch_bytes` and remembers where each batch lies."""

    def __init__(self, sink: Any, kind: Kind, batch_bytes: int) -> None:
        self._sink = sink
        self._batch_bytes = batch_bytes
        self._kind = kind
        self._schema = schema(kind)
        self._writer = pa.ipc.new_file(sink, self._schema)
        # Magic and schema, which Arrow writes together with the first batch.
        self._header_bytes = 8 + self._schema.serialize().size
        self._pending: list[NDArray[Any]] = []
        self._pending_bytes = 0
        self.ranges: list[tuple[int, int, int]] = []
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.labels: list[int] = []
        self.digests: list[str] = []
        self.statistics = Statistics()

    def add(self, recording: Recording) -> None:
        """Take a recording; raises ValueError if its samples are not of the kind."""
        samples = np.ascontiguousarray(recording.samples)
        dtype, width = self._kind.dtype, self._kind.width
        if samples.dtype != dtype or not samples.size or samples.size != (width or samples.size):
            wanted = f"{dtype} and {'at least one' if width is None else width}"
            raise ValueError(f"{recording.name}: samples must be {wanted}, got {samples.size} {samples.dtype}")
        if self._pending and self._pending_bytes + samples.nbytes > self._batch_bytes:
            self._flush()
        self._pending.append(samples)
        self._pending_bytes += samples.nbytes
        self.names.append(recording.name)
        self.lengths.append(samples.size)
        self.labels.append(recording.label)
        self.digests.append(digest(samples, recording.label))

    def close(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        samples = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self.statistics = self.statistics.merged(Statistics.of(samples))
        values = pa.array(samples)
        row_type = self._schema.field(0).type
        if self._kind.width is None:
            offsets = np.cumsum([0, *(len(row) for row in self._pending)])
            rows = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, type=row_type)
        else:
            rows = pa.FixedSizeListArray.from_arrays(values, type=row_type)
        start = max(self._sink.tell(), self._header_bytes)
        self._writer.write_batch(pa.record_batch([rows], schema=self._schema))
        self.ranges.append((start, self._sink.tell() - start, len(self._pending)))
        self._pending, self._pending_bytes = [], 0


def digest(samples: NDArray[Any], label: int) -> str:
    """Return the sha256 of a recording: its samples, little-endian, and its label if it has one."""
    content = hashlib.sha256(samples.astype(samples.dtype.newbyteorder("<"), copy=False).data)
    if label != NO_LABEL:
        content.update(label.to_bytes(8, "little", signed=True))
    return content.hexdigest()
