"""What a store says about itself: manifest.json, its fields, checks and fingerprint; no Arrow here."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zfdist import atomic_io
from zfdist.data.kinds import KINDS
from zfdist.data.statistics import Statistics as Statistics
from zfdist.errors import ZfdistError

FORMAT = 1
NAME = "manifest.json"
SPLITS = ("train", "valid", "test")
_MOST = 1 << 60
"""Of anything that is counted."""

T = TypeVar("T")


class StoreError(ZfdistError):
    """A store that cannot be used; the message names the file or field and the remedy."""


class ShardCorrupt(StoreError):
    """A shard that is not what was written; the message names shard, batch and byte range."""


@dataclass(frozen=True)
class BatchEntry:
    """A record batch: where its bytes lie in the shard, and their hash."""

    offset: int
    bytes: int
    rows: int
    xxh3_128: str


@dataclass(frozen=True)
class ShardEntry:
    """A shard file, relative to the store's folder."""

    path: str
    bytes: int
    rows: int
    samples: int
    sha256: str
    xxh3_128: str
    batches: list[BatchEntry]


@dataclass(frozen=True)
class IndexEntry:
    """The file with name, length and (where the data have them) label of every recording of a split."""

    path: str
    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class SplitEntry:
    """A split: its recordings in order, and the shards that hold them in the same order."""

    recordings: int
    samples: int
    shortest: int
    longest: int
    statistics: Statistics
    content_sha256: str
    """Over length and sha256 of every recording with its label, in order: the same however it is cut into shards.

    Where recordings were added later, over the hashes of the parts.
    """
    index: IndexEntry
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from the samples, and what they are divided by; the split they are of.

    Sound: mean and standard deviation, in PCM units. Images and sentences stay as they are: 0 and 1.
    """

    split: str
    mean: float
    std: float


@dataclass(frozen=True)
class VocabularyEntry:
    """The file with the words of a store of sentences, one a line in the order of their ids."""

    path: str
    bytes: int
    words: int
    """The special ones included."""
    sha256: str


@dataclass(frozen=True)
class Part:
    """What was added to a store at a time: so many recordings of each split, after those of the part before."""

    recordings: dict[str, int]
    content_sha256: dict[str, str]
    source: dict[str, Any]
    """What it was read from."""


@dataclass(frozen=True)
class StoreManifest:
    """A store's description; it is written last, so a folder that has one is complete."""

    format: int
    kind: str
    """What a row is: one of `zfdist.data.kinds`."""
    sample_rate: int
    """Samples a second; 0 where the rows are no sound."""
    schema: dict[str, str]
    normalisation: Normalisation
    splits: dict[str, SplitEntry]
    source: dict[str, Any]
    """Converter, its version and options, and what it read."""
    licence: str
    generation: int
    """How many parts there are."""
    fingerprint: str
    vocabulary: VocabularyEntry | None = None
    """Of a store of sentences."""
    parts: list[Part] | None = None
    """If recordings were added after the first time; the content of a split is then hashed over those of its parts."""

    def to_json(self) -> str:
        """Return the manifest as indented JSON, the same text for the same values; what is None is left out."""
        tree = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(tree, indent=1) + "\n"

    @staticmethod
    def read(root: Path) -> "StoreManifest":
        """Read and check a store's manifest; raises StoreError if it is missing, damaged or contradicts itself."""
        try:
            content = (root / NAME).read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"{root}: no {NAME}; run zfdist prepare speech --source DIR --out {root} "
                "(or timit, blizzard, mnist or text instead of speech)"
            ) from None
        except OSError as error:
            raise _unreadable(f"{root / NAME}", error) from None
        return StoreManifest.parse(content, f"{root / NAME}")

    @staticmethod
    def parse(content: bytes, path: str) -> "StoreManifest":
        """Check the content of a manifest that messages call `path`; raises StoreError as `read`."""
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, error) from None
        if isinstance(tree, dict) and tree.get("format") != FORMAT:
            raise StoreError(
                f"{path}: format is {tree.get('format')!r}, this version reads {FORMAT}; run zfdist prepare again"
            )
        manifest = build(StoreManifest, tree, path)
        manifest._check(path)
        return manifest

    def _follow_from_parts(self, parts: "list[Part]") -> bool:
        same = all(part.recordings.keys() == part.content_sha256.keys() for part in parts)
        return (
            same
            and len(parts) == self.generation
            and all(
                sum(part.recordings.get(name, 0) for part in parts) == split.recordings
                and joined_sha256([part.content_sha256[name] for part in parts if name in part.content_sha256])
                == split.content_sha256
                for name, split in self.splits.items()
            )
        )

    def _file_names(self) -> list[str]:
        splits = self.splits.values()
        found = [split.index.path for split in splits] + [shard.path for split in splits for shard in split.shards]
        return [*found, self.vocabulary.path] if self.vocabulary else found

    def _check(self, path: str) -> None:
        """Raise StoreError unless the derived fields follow from the others."""
        remedy = "it was edited or damaged; remove the folder and run zfdist prepare again"
        if outside := [name for name in self._file_names() if not atomic_io.is_inside(name)]:
            raise StoreError(f"{path}: lists {outside[0]!r}, which is in no data set; {remedy}")
        if self.kind not in KINDS:
            raise StoreError(f"{path}: kind is {self.kind!r}, this version reads {', '.join(KINDS)}; {remedy}")
        if impossible := [name for name, split in self.splits.items() if not _is_possible(split)]:
            raise StoreError(f"{path}: split {impossible[0]!r} has counts or statistics that cannot be; {remedy}")
        if self.normalisation.split not in self.splits:
            raise StoreError(
                f"{path}: normalisation names split {self.normalisation.split!r}, which is absent; {remedy}"
            )
        if self.normalisation != normalisation(self.kind, self.normalisation.split, self.splits):
            raise StoreError(f"{path}: normalisation does not follow from the statistics; {remedy}")
        if self.parts is not None and not self._follow_from_parts(self.parts):
            raise StoreError(f"{path}: the splits do not follow from the parts; {remedy}")
        if self.fingerprint != fingerprint(self.kind, self.sample_rate, self.splits, self.vocabulary):
            raise StoreError(f"{path}: fingerprint does not follow from the contents; {remedy}")


def _is_possible(split: SplitEntry) -> bool:
    """Tell whether a split's counts can be those of any data."""
    counts = [split.recordings, split.samples, split.shortest, split.longest, split.index.bytes]
    for shard in split.shards:
        counts += [shard.bytes, shard.rows, shard.samples]
        counts += [number for batch in shard.batches for number in (batch.offset + 1, batch.bytes, batch.rows)]
    return all(0 < count < _MOST for count in counts) and split.statistics.is_possible


def _unreadable(path: str, error: Exception) -> StoreError:
    return StoreError(f"{path}: unreadable ({error}); remove its folder and run zfdist prepare again")


def normalisation(kind: str, split: str, splits: Mapping[str, SplitEntry]) -> Normalisation:
    """Return how the samples of a store are normalised: by the statistics of `split`, or (0, 1) not at all."""
    if not KINDS[kind].is_normalised:
        return Normalisation(split, 0.0, 1.0)
    statistics = splits[split].statistics
    return Normalisation(split, statistics.mean, statistics.std)


def fingerprint(
    kind: str, sample_rate: int, splits: Mapping[str, SplitEntry], vocabulary: VocabularyEntry | None = None
) -> str:
    """Return the identity of the data: sha256 over what fixes every sample of every split, and nothing else."""
    fixed: dict[str, Any] = {
        "kind": kind,
        "sample_rate": sample_rate,
        "splits": {name: [entry.recordings, entry.samples, entry.content_sha256] for name, entry in splits.items()},
    }
    if vocabulary is not None:
        fixed["vocabulary"] = vocabulary.sha256
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_sha256(lengths: Iterable[int], digests: Iterable[str]) -> str:
    """Return the hash of a split from lengths in samples and sha256 of its recordings, in order."""
    whole = hashlib.sha256()
    for length, digest in zip(lengths, digests, strict=True):
        whole.update(length.to_bytes(8, "little") + bytes.fromhex(digest))
    return whole.hexdigest()


def joined_sha256(parts: Sequence[str]) -> str:
    """Return the hash of a split from those of its parts, in order; of a single one its own."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def build(kind: type[T], tree: Any, path: str) -> T:
    """Make a dataclass, list, dict or plain value from parsed JSON; raises StoreError naming a field that is wrong."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
        found = set(tree) if isinstance(tree, dict) else set()
        if not isinstance(tree, dict) or found - set(hints) or set(hints) - optional - found:
            wrong = sorted((set(hints) - optional) ^ (found - optional)) if found else type(tree).__name__
            raise StoreError(f"{path}: missing or unknown fields {wrong}; run zfdist prepare again")
        return kind(**{name: build(hints[name], tree[name], f"{path}: {name}") for name in hints if name in tree})
    if kind is Any:
        return typing.cast(T, tree)
    if origin is types.UnionType:
        return typing.cast(T, build(arguments[0], tree, path))
    if origin is list and isinstance(tree, list):
        return typing.cast(T, [build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(tree)])
    if origin is dict and isinstance(tree, dict):
        return typing.cast(T, {name: build(arguments[1], item, f"{path}.{name}") for name, item in tree.items()})
    if origin is None and isinstance(tree, kind) and not isinstance(tree, bool):
        return tree
    raise StoreError(f"{path}: must be {kind}, got {tree!r}; run zfdist prepare again")
