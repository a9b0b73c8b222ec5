"""New recordings to a finished store: which files are new, and that those it has are still what they were."""

from collections.abc import Mapping, Sequence
from typing import Any

from zfdist.data.manifest import Part, StoreManifest
from zfdist.data.output import Output, Where, output_at
from zfdist.data.sources.convert import json_sha256, manifest_at
from zfdist.data.sources.inputs import Input, SourceError
from zfdist.data.store_writer import index_table

_CHANGING = ("files", "bytes", "inputs_sha256", "left_out", "doubtful", "shard_mb")
"""What a part says of its own files; all else must be the same for all parts."""


def opened(out: Where) -> StoreManifest:
    """Return the manifest of the store that is to be added to; raises SourceError if there is none."""
    manifest = manifest_at(out)
    if manifest is None:
        raise SourceError(f"--append: {output_at(out).shown} holds no finished data set; leave out --append to make it")
    return manifest


def new_inputs(
    out: Where, manifest: StoreManifest, source: Mapping[str, Any], splits: Mapping[str, list[Input]]
) -> dict[str, list[Input]]:
    """Return of each split the files that are not in the store.

    Raises SourceError if the store was made otherwise, or files that it has are there and not what they were.
    """
    differing = [
        name for name in source if name not in _CHANGING and _rule(source, name) != _rule(manifest.source, name)
    ]
    if differing:
        raise SourceError(
            f"--append: {output_at(out).shown} was made with other options (different: {', '.join(differing)}); give "
            "those of the first time"
        )
    items = [item for items in splits.values() for item in items]
    known: set[str] = set()
    for names, part in _parts(output_at(out), manifest):
        known |= names
        there = sorted([item.name, item.bytes, item.edges] for item in items if item.name in names)
        if there and json_sha256(there) != part["inputs_sha256"]:
            raise SourceError(
                f"--append: of {len(names):,} files that were read before, {len(there):,} are in --source, and not all "
                f"of them as they were, e.g. {there[0][0]!r}; give new files alone, under names of their own, or all "
                "old ones unchanged and the new ones"
            )
    return {split: [item for item in items if item.name not in known] for split, items in splits.items()}


def _parts(output: Output, manifest: StoreManifest) -> list[tuple[set[str], dict[str, Any]]]:
    """Return of each part the names of its files and what it says of them."""
    first = {name: split.recordings for name, split in manifest.splits.items()}
    parts: Sequence[Part] = manifest.parts or [Part(first, {}, manifest.source)]
    found = [set(part.source["left_out"]) for part in parts]
    for name, split in manifest.splits.items():
        index = index_table(output, split.index)
        start = 0
        for names, part in zip(found, parts, strict=True):
            count = part.recordings.get(name, 0)
            names.update(index["name"].slice(start, count).to_pylist())
            start += count
    return [(names, part.source) for names, part in zip(found, parts, strict=True)]


def _rule(source: Mapping[str, Any], name: str) -> Any:
    """Return an entry; of a split by lists only that it is one, as new lists name new files."""
    value = source.get(name)
    return {key: value[key] for key in value if key != "sha256"} if isinstance(value, dict) else value
