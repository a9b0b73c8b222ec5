"""A store that grows: finished shards become its next part, and the shards that it has stay as they are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from zfdist.data import manifest as manifests
from zfdist.data.manifest import StoreManifest
from zfdist.data.output import Where, output_at
from zfdist.data.store_writer import FinishedShard, clean, index_table, split_entry, table_of, write_index


def append(
    root: Where, manifest: StoreManifest, splits: Mapping[str, Sequence[FinishedShard]], source: dict[str, Any]
) -> StoreManifest:
    """Add finished shards to a store as its next part; the shards that it has stay as they are.

    A process that has the store open keeps what it opened. Raises StoreError if an index is damaged.
    """
    output = output_at(root)
    generation = manifest.generation + 1
    entries = dict(manifest.splits)
    part = manifests.Part({}, {}, source)
    for name, shards in splits.items():
        shards = [shard for shard in shards if shard.lengths]
        if not shards:
            continue
        before = manifest.splits[name]
        old = index_table(output, before.index)
        added = table_of(shards, has_labels="label" in old.column_names)
        index = write_index(output, f"index-{name}-{generation}.arrow", pa.concat_tables([old, added]))
        new = split_entry(shards, index)
        part.recordings[name], part.content_sha256[name] = new.recordings, new.content_sha256
        entries[name] = dataclasses.replace(
            new,
            recordings=before.recordings + new.recordings,
            samples=before.samples + new.samples,
            shortest=min(before.shortest, new.shortest),
            longest=max(before.longest, new.longest),
            statistics=before.statistics.merged(new.statistics),
            shards=[*before.shards, *new.shards],
        )
    first = manifests.Part(
        {name: split.recordings for name, split in manifest.splits.items()},
        {name: split.content_sha256 for name, split in manifest.splits.items()},
        manifest.source,
    )
    parts = [*(manifest.parts or [first]), part]
    for name in part.recordings:
        hashes = [each.content_sha256[name] for each in parts if name in each.content_sha256]
        entries[name] = dataclasses.replace(entries[name], content_sha256=manifests.joined_sha256(hashes))
    added_to = dataclasses.replace(
        manifest,
        normalisation=manifests.normalisation(manifest.kind, manifest.normalisation.split, entries),
        splits=entries,
        generation=generation,
        fingerprint=manifests.fingerprint(manifest.kind, manifest.sample_rate, entries, manifest.vocabulary),
        parts=parts,
    )
    output.write(manifests.NAME, added_to.to_json().encode())
    clean(root, added_to)
    return added_to
