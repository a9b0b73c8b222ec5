"""A store checked whole: every hash of every file, and that all that its manifest says follows from the samples."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from zfdist.data import manifest as manifests
from zfdist.data.batch_writer import digest
from zfdist.data.kinds import KINDS, NO_LABEL
from zfdist.data.manifest import ShardEntry, SplitEntry, Statistics, StoreError, StoreManifest
from zfdist.data.output import Where, mapped, output_at, scratch
from zfdist.data.split import REMEDY, Split
from zfdist.data.store import Shard, map_shard
from zfdist.object_store import Missing, ObjectFolder, is_remote

_SUMMED = 1 << 20
Checked = Callable[[int, int, str], None]
"""Called with bytes that were checked, bytes in all, and the file in hand."""


def verify(where: Where, checked: Checked = lambda done, total, name: None) -> list[str]:
    """Return what is wrong with a store, a sentence for each file or split; none if it is what its manifest says.

    Files in an object store are fetched one after the other and not kept. Raises StoreError if there is no manifest or
    it is damaged, StorageError if the store cannot be used.
    """
    output = output_at(where)
    content = output.read(manifests.NAME)
    if content is None:
        raise StoreError(f"{output.shown}: no {manifests.NAME}; it holds no finished data set")
    manifest = StoreManifest.parse(content, f"{output.shown}/{manifests.NAME}")
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    wrong, done = list[str](), 0

    def shown(name: str, path: Path, error: Exception) -> str:
        return str(error).replace(str(path), f"{output.shown}/{name}")

    for name, entry in manifest.splits.items():
        try:
            with _local(where, entry.index.path) as root:
                split = Split(root, entry)
        except StoreError as error:
            wrong.append(shown(entry.index.path, root / entry.index.path, error))
            split = None
        content_of = _Content()
        for number, shard in enumerate(entry.shards):
            with _local(where, shard.path) as root:
                try:
                    if split is None:
                        _check_hashes(root / shard.path, shard)
                    else:
                        content_of.add(_checked(root / shard.path, shard, manifest, split, number), split, number)
                except StoreError as error:
                    wrong.append(shown(shard.path, root / shard.path, error))
                    content_of.is_whole = False
            done += shard.bytes
            checked(done, total, shard.path)
        if split is not None and content_of.is_whole:
            wrong += [
                f"{output.shown}: split {name!r}: {what}" for what in _differing(content_of, manifest, name, entry)
            ]
    vocabulary = manifest.vocabulary
    if vocabulary is not None:
        found = output.read(vocabulary.path) or b""
        if hashlib.sha256(found).hexdigest() != vocabulary.sha256:
            wrong.append(f"{output.shown}/{vocabulary.path}: missing or damaged (its sha256); {REMEDY}")
    return wrong


@contextmanager
def _local(where: Where, name: str) -> Iterator[Path]:
    """Give the folder in which a file of the store is found for the block."""
    if not is_remote(where):
        yield Path(where)
        return
    with scratch() as folder:
        with contextlib.suppress(Missing):  # its absence is found there
            ObjectFolder(str(where)).download(name, folder / name)
        yield folder


def _check_hashes(path: Path, entry: ShardEntry) -> None:
    """Raise StoreError unless a file has both hashes of the manifest."""
    try:
        with mapped(path) as content:
            is_right = (xxhash.xxh3_128_hexdigest(content), hashlib.sha256(content).hexdigest()) == (
                entry.xxh3_128,
                entry.sha256,
            )
    except (OSError, ValueError):
        raise StoreError(f"{path}: missing, empty or unreadable; {REMEDY}") from None
    if not is_right:
        raise StoreError(f"{path}: damaged (its hashes are not the manifest's); {REMEDY}")


def _checked(path: Path, entry: ShardEntry, manifest: StoreManifest, split: Split, number: int) -> Shard:
    """Return a shard after all of its hashes were checked."""
    shard = map_shard(path, entry, KINDS[manifest.kind], split.lengths_of(number), "unmarked")
    _check_hashes(path, entry)
    return shard


class _Content:
    """What the recordings of a split add up to."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.lengths: list[int] = []
        self.statistics = Statistics()
        self.is_whole = True

    def add(self, shard: Shard, split: Split, number: int) -> None:
        """Take the recordings of the next shard."""
        first = int(split.first_rows[number])
        pending, size = [], 0
        for place, start in enumerate(shard.starts.tolist()):
            samples = shard.flat[start : start + int(split.lengths[first + place])]
            label = NO_LABEL if split.labels is None else int(split.labels[first + place])
            self.digests.append(digest(samples, label))
            self.lengths.append(samples.size)
            pending.append(samples)
            size += samples.size
            if size > _SUMMED:
                self.statistics = self.statistics.merged(Statistics.of(np.concatenate(pending)))
                pending, size = [], 0
        if pending:
            self.statistics = self.statistics.merged(Statistics.of(np.concatenate(pending)))


def _differing(found: _Content, manifest: StoreManifest, name: str, entry: SplitEntry) -> Iterator[str]:
    """Yield what of a split does not follow from its samples."""
    parts = manifest.parts or [manifests.Part({name: entry.recordings}, {name: entry.content_sha256}, {})]
    start = 0
    for part in parts:
        stop = start + part.recordings.get(name, 0)
        lengths = found.lengths[start:stop]
        if stop > start and manifests.content_sha256(lengths, found.digests[start:stop]) != part.content_sha256[name]:
            yield "its samples or labels are others than those that the manifest was made for"
        start = stop
    if found.statistics != entry.statistics:
        yield "its statistics do not follow from its samples"
    if (sum(found.lengths), min(found.lengths), max(found.lengths)) != (entry.samples, entry.shortest, entry.longest):
        yield "its lengths are not what the manifest says"
