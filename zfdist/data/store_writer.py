"""Writing a store: one shard at a time, kept over interruptions, published by rename with the manifest last.

While a store is being made, each finished shard has a done-file beside the shards in `unfinished/` that says what it
was made from; a later run keeps the shards whose done-file fits and makes the others again. A folder with a manifest
is complete; what its manifest names never changes, and only `zfdist.data.append` gives it another manifest.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from zfdist.data import manifest as manifests
from zfdist.data.batch_writer import BatchWriter, schema
from zfdist.data.batch_writer import Recording as Recording
from zfdist.data.kinds import NO_LABEL, PCM16, SPECIALS, Kind
from zfdist.data.manifest import (
    BatchEntry,
    IndexEntry,
    ShardEntry,
    SplitEntry,
    Statistics,
    StoreError,
    StoreManifest,
    VocabularyEntry,
)
from zfdist.data.output import UNFINISHED, Output, Where, mapped, output_at

BATCH_BYTES = 16 << 20
SHARDS = "shards"
VOCABULARY = "vocabulary.txt"


@dataclass(frozen=True)
class FinishedShard:
    """A shard as its done-file describes it: what it was made from, what it holds."""

    key: str
    entry: ShardEntry
    names: list[str]
    lengths: list[int]
    digests: list[str]
    """sha256 of the samples of each recording, little-endian, and of its label if it has one."""
    statistics: Statistics
    notes: dict[str, str]
    """Inputs that gave no recording, with the reason."""
    labels: list[int]
    """Label of each recording, -1 where unknown."""
    kind: str


@contextmanager
def writing(root: Where, *, is_finished: bool = False) -> Iterator[None]:
    """Hold the right to write a store in folder or URI `root`, which is made if need be; `is_finished`: to add to it.

    Raises StoreError if another process holds it or the folder has other things in it.
    """
    output = output_at(root)
    names = [] if is_finished else output.names()
    if names and not any(name.startswith(f"{UNFINISHED}/") for name in names):
        raise StoreError(f"{output.shown}: exists and is not an unfinished data set; choose another --out or remove it")
    with output.claimed():
        yield


def finished_shard(root: Where, label: str, key: str) -> FinishedShard | None:
    """Return the shard that an earlier run made from the same input `key`, or None if it must be made (again).

    The file's size and hash are checked, so a shard that was damaged in between counts as not made; in an object store
    its size alone, as no object changes there by itself.
    """
    output = output_at(root)
    try:
        shard = manifests.build(FinishedShard, json.loads(output.read(_done_file(label)) or b"null"), label)
    except (ValueError, StoreError):
        return None
    return shard if shard.key == key and output.is_whole(shard.entry) else None


def write_shard(
    root: Where, label: str, key: str, recordings: Iterable[Recording], notes: dict[str, str], kind: Kind = PCM16
) -> FinishedShard:
    """Write recordings, in order, to shard `label` (e.g. "train-00003"), and last the done-file that makes it count.

    `notes` is read when all recordings were taken, so the caller may fill it while yielding them. Memory: a record
    batch of about BATCH_BYTES, or the longest recording if that is more.
    """
    output = output_at(root)
    with output.fresh() as fresh:
        with fresh.open("wb") as sink:
            writer = BatchWriter(sink, kind, BATCH_BYTES)
            for recording in recordings:
                writer.add(recording)
            writer.close()
        entry = _entry(fresh, label, writer)
        output.keep(fresh, entry.path)
    shard = FinishedShard(
        key,
        entry,
        writer.names,
        writer.lengths,
        writer.digests,
        writer.statistics,
        notes,
        labels=writer.labels,
        kind=kind.name,
    )
    output.write(_done_file(label), json.dumps(dataclasses.asdict(shard)).encode())
    return shard


def publish(
    root: Where,
    splits: Mapping[str, Sequence[FinishedShard]],
    *,
    sample_rate: int,
    source: dict[str, Any],
    licence: str,
    kind: Kind = PCM16,
    words: Sequence[str] | None = None,
) -> StoreManifest:
    """Make the finished shards a store: write the indices, then the manifest, then remove what is left of the making.

    `words` are the vocabulary of a store of sentences, without the special ones. Raises StoreError if a split has no
    recording or the training split cannot be normalised.
    """
    for name, shards in splits.items():
        if not any(shard.lengths for shard in shards):
            raise StoreError(f"split {name!r} has no recording")
    made = [shard for shards in splits.values() for shard in shards]
    if any(shard.kind != kind.name for shard in made) or (words is not None) != kind.has_vocabulary:
        raise ValueError(f"all shards must be {kind.name}, and words be given for words alone")
    output = output_at(root)
    has_labels = any(label != NO_LABEL for shard in made for label in shard.labels)
    entries = {}
    for name, shards in splits.items():
        index = write_index(output, f"index-{name}.arrow", table_of(shards, has_labels=has_labels))
        entries[name] = split_entry(shards, index)
    statistics = entries["train"].statistics
    if kind.is_normalised and statistics.minimum == statistics.maximum:
        raise StoreError("all samples of the training split are equal: no standard deviation to normalise by")
    vocabulary = None if words is None else _write_vocabulary(output, words)
    manifest = StoreManifest(
        format=manifests.FORMAT,
        kind=kind.name,
        sample_rate=sample_rate,
        schema={field.name: str(field.type) for field in schema(kind)},
        normalisation=manifests.normalisation(kind.name, "train", entries),
        splits=entries,
        source=source,
        licence=licence,
        generation=1,
        fingerprint=manifests.fingerprint(kind.name, sample_rate, entries, vocabulary),
        vocabulary=vocabulary,
    )
    output.write(manifests.NAME, manifest.to_json().encode())
    clean(root, manifest)
    return manifest


def index_table(output: Output, entry: IndexEntry) -> Any:
    """Return the index of a split, an Arrow table; raises StoreError if it is damaged."""
    content = output.read(entry.path) or b""
    if xxhash.xxh3_128_hexdigest(content) != entry.xxh3_128:
        raise StoreError(
            f"{output.shown}/{entry.path}: damaged (its xxh3_128 is not the manifest's); copy it again from an intact "
            "store, or remove the folder and run zfdist prepare again"
        )
    return pa.ipc.open_file(content).read_all()


def clean(root: Where, manifest: StoreManifest) -> None:
    """Remove done-files, what killed writers left, and shards and indices that a published manifest does not name."""
    output = output_at(root)
    named = {shard.path for split in manifest.splits.values() for shard in split.shards}
    named |= {split.index.path for split in manifest.splits.values()}
    ours = (f"{SHARDS}/", "index-")
    output.delete(n for n in output.names() if n.startswith(ours) and n.endswith(".arrow") and n not in named)
    output.tidy()


def _entry(path: Path, label: str, writer: BatchWriter) -> ShardEntry:
    """Hash a written shard, and name it by its hash."""
    with mapped(path) as content:
        batches = [
            BatchEntry(start, size, rows, xxhash.xxh3_128_hexdigest(content[start : start + size]))
            for start, size, rows in writer.ranges
        ]
        sha256, xxh3, size = hashlib.sha256(content).hexdigest(), xxhash.xxh3_128_hexdigest(content), len(content)
    name = f"{SHARDS}/{label}-{sha256[:12]}.arrow"
    return ShardEntry(name, size, len(writer.lengths), sum(writer.lengths), sha256, xxh3, batches)


def table_of(shards: Sequence[FinishedShard], *, has_labels: bool) -> Any:
    """Return the index of shards: name, length and label of every recording."""
    names = [name for shard in shards for name in shard.names]
    lengths = [length for shard in shards for length in shard.lengths]
    columns = {"name": pa.array(names, pa.large_string()), "samples": pa.array(lengths, pa.int64())}
    if has_labels:
        columns["label"] = pa.array([label for shard in shards for label in shard.labels], pa.int64())
    return pa.table(columns)


def write_index(output: Output, name: str, table: Any) -> IndexEntry:
    """Write the index of a split."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    output.write(name, content)
    return IndexEntry(name, len(content), xxhash.xxh3_128_hexdigest(content))


def split_entry(shards: Sequence[FinishedShard], index: IndexEntry) -> SplitEntry:
    """Describe a split."""
    shards = [shard for shard in shards if shard.lengths]
    lengths = [length for shard in shards for length in shard.lengths]
    statistics = Statistics()
    for shard in shards:
        statistics = statistics.merged(shard.statistics)
    return SplitEntry(
        recordings=len(lengths),
        samples=sum(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        statistics=statistics,
        content_sha256=manifests.content_sha256(lengths, [d for shard in shards for d in shard.digests]),
        index=index,
        shards=[shard.entry for shard in shards],
    )


def _write_vocabulary(output: Output, words: Sequence[str]) -> VocabularyEntry:
    content = "".join(f"{word}\n" for word in [*SPECIALS, *words]).encode()
    output.write(VOCABULARY, content)
    return VocabularyEntry(VOCABULARY, len(content), len(SPECIALS) + len(words), hashlib.sha256(content).hexdigest())


def _done_file(label: str) -> str:
    return f"{UNFINISHED}/{label}.done.json"
