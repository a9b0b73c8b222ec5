"""What a store says about itself: manifest.json, its fields, checks and fingerprint; no Arrow here."""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
NAME = "manifest.json"
SPLITS = ("train", "valid", "test")

T = TypeVar("T")


class StoreError(ValueError):
    """A store that cannot be used; the message names the file or field and the remedy."""


class ShardCorrupt(StoreError):
    """A shard that is not what was written; the message names shard, batch and byte range."""


@dataclass(frozen=True)
class Statistics:
    """Exact sums over int16 samples; merging them is exact and free of order."""

    count: int = 0
    total: int = 0
    squares: int = 0
    minimum: int = 0
    maximum: int = 0

    @staticmethod
    def of(samples: NDArray[np.int16], block: int = 1 << 20) -> "Statistics":
        """Sum over samples; `block` bounds the memory used."""
        result = Statistics()
        for start in range(0, samples.size, block):
            part = samples[start : start + block].astype(np.int64)
            one = Statistics(part.size, int(part.sum()), int((part * part).sum()), int(part.min()), int(part.max()))
            result = result.merged(one)
        return result

    def merged(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both sets of samples together."""
        if not self.count or not other.count:
            return self if self.count else other
        return Statistics(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    @property
    def mean(self) -> float:
        """Mean in PCM units, the float nearest to the exact value."""
        return float(Fraction(self.total, self.count))

    @property
    def std(self) -> float:
        """Standard deviation in PCM units, dividing by the count."""
        return math.sqrt(Fraction(self.count * self.squares - self.total**2, self.count**2))


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
    """The file with name and length of every recording of a split."""

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
    """Over length and sha256 of every recording in order: the same however it is cut into shards."""
    index: IndexEntry
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation in PCM units, and the split they are of."""

    split: str
    mean: float
    std: float


@dataclass(frozen=True)
class Manifest:
    """A store's description; it is written last, so a folder that has one is complete."""

    format: int
    kind: str
    sample_rate: int
    schema: dict[str, str]
    normalisation: Normalisation
    splits: dict[str, SplitEntry]
    source: dict[str, Any]
    """Converter, its version and options, and what it read."""
    licence: str
    generation: int
    fingerprint: str

    def to_json(self) -> str:
        """Return the manifest as indented JSON, the same text for the same values."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def read(root: Path) -> "Manifest":
        """Read and check a store's manifest; raises StoreError if it is missing, damaged or contradicts itself."""
        path = root / NAME
        try:
            tree = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(
                f"{root}: no {NAME}; run python -m jobs.prepare speech --source DIR --out {root}"
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: unreadable ({error}); remove {root} and run jobs.prepare again") from None
        if isinstance(tree, dict) and tree.get("format") != FORMAT:
            raise StoreError(
                f"{path}: format is {tree.get('format')!r}, this version reads {FORMAT}; run jobs.prepare again"
            )
        manifest = build(Manifest, tree, str(path))
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """Raise StoreError unless the derived fields follow from the others."""
        remedy = "it was edited or damaged; remove the folder and run jobs.prepare again"
        if self.normalisation.split not in self.splits:
            raise StoreError(
                f"{path}: normalisation names split {self.normalisation.split!r}, which is absent; {remedy}"
            )
        statistics = self.splits[self.normalisation.split].statistics
        if (self.normalisation.mean, self.normalisation.std) != (statistics.mean, statistics.std):
            raise StoreError(f"{path}: normalisation does not follow from the statistics; {remedy}")
        if self.fingerprint != fingerprint(self.kind, self.sample_rate, self.splits):
            raise StoreError(f"{path}: fingerprint does not follow from the contents; {remedy}")


def fingerprint(kind: str, sample_rate: int, splits: Mapping[str, SplitEntry]) -> str:
    """Return the identity of the data: sha256 over what fixes every sample of every split, and nothing else."""
    fixed = {
        "kind": kind,
        "sample_rate": sample_rate,
        "splits": {name: [entry.recordings, entry.samples, entry.content_sha256] for name, entry in splits.items()},
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_sha256(lengths: Iterable[int], digests: Iterable[str]) -> str:
    """Return the hash of a split from lengths in samples and sha256 of its recordings, in order."""
    whole = hashlib.sha256()
    for length, digest in zip(lengths, digests, strict=True):
        whole.update(length.to_bytes(8, "little") + bytes.fromhex(digest))
    return whole.hexdigest()


def build(kind: type[T], tree: Any, path: str) -> T:
    """Make a dataclass, list, dict or plain value from parsed JSON; raises StoreError naming a field that is wrong."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(tree, dict) or set(tree) != set(hints):
            found = sorted(set(tree) ^ set(hints)) if isinstance(tree, dict) else type(tree).__name__
            raise StoreError(f"{path}: missing or unknown fields {found}; run jobs.prepare again")
        return kind(**{name: build(hints[name], tree[name], f"{path}: {name}") for name in hints})
    if kind is Any:
        return typing.cast(T, tree)
    if origin is list and isinstance(tree, list):
        return typing.cast(T, [build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(tree)])
    if origin is dict and isinstance(tree, dict):
        return typing.cast(T, {name: build(arguments[1], item, f"{path}.{name}") for name, item in tree.items()})
    if origin is None and isinstance(tree, kind) and not isinstance(tree, bool):
        return tree
    raise StoreError(f"{path}: must be {kind}, got {tree!r}; run jobs.prepare again")
