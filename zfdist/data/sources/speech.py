"""A tree of audio files to a store: which files, which split, which shard; resumable, the same bytes every time."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfdist.data import manifest as manifests
from zfdist.data.manifest import Manifest
from zfdist.data.sources import audio
from zfdist.data.sources.inputs import Input, SourceError, list_inputs, split_of, splits_by_lists
from zfdist.data.store import Store, StoreError
from zfdist.data.store_writer import FinishedShard, Recording, clean, finished_shard, publish, write_shard, writing

VERSION = 1
SAMPLE = Path(__file__).parent / "sample" / "speech"
"""The speech that ships: one speaker, 16 kHz."""

SHORT_SAMPLES = 400
"""Two of the usual frames: a recording with less has nothing to predict."""
LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYRIGHT", "COPYING")

Progress = Callable[[int, int, str], None]
"""Called with samples done, samples in all (estimated) and the shard or file in hand."""


@dataclass(frozen=True)
class Options:
    """What to convert and how; all but `source`, `licence` and `max_bad` shape the data."""

    source: Path
    sample_rate: int = 16_000
    split_by: str = "file"
    """"file" or "folder": whose relative path decides the split."""
    valid_percent: float = 10.0
    test_percent: float = 10.0
    lists: Mapping[str, Path] | None = None
    """A list file for each split instead of the rule."""
    shard_mb: int = 256
    licence: str = ""
    max_bad: int = 0

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        ranges = {"sample_rate": (1000, 768_000), "shard_mb": (1, 65_536), "max_bad": (0, 2**31)}
        for name, (low, high) in (ranges | {"valid_percent": (0, 100), "test_percent": (0, 100)}).items():
            if not low <= getattr(self, name) <= high:
                raise SourceError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {low} to {high}")
        if self.valid_percent + self.test_percent >= 100:
            raise SourceError(
                f"--valid-percent {self.valid_percent:g} and --test-percent {self.test_percent:g} "
                "leave nothing to train on: their sum must be below 100"
            )


@dataclass(frozen=True)
class Outcome:
    """What `prepare` left behind."""

    manifest: Manifest
    was_there: bool
    """The store had been finished before from the same input."""
    bad: dict[str, str]
    """Files that gave no recording, with the reason."""
    short: int
    """Recordings of fewer than SHORT_SAMPLES samples."""


def prepare(options: Options, out: Path, progress: Progress = lambda done, total, label: None) -> Outcome:
    """Convert a tree of audio files to a store in folder `out`, or finish what an interrupted run began.

    Raises SourceError for unusable input (files that cannot be read are reported together, at the end), StoreError if
    `out` holds something else.
    """
    splits = _splits(options, list_inputs(options.source))
    source = _source(options, splits)
    if (out / manifests.NAME).exists():
        return _existing(out, source)
    with writing(out):
        plan = [shard for name, inputs in splits.items() for shard in _plan(options, name, inputs)]
        total, done = sum(shard.samples for shard in plan), 0
        shards: dict[str, list[FinishedShard]] = {name: [] for name in splits}
        for shard in plan:

            def report(samples: int, name: str, start: int = done) -> None:
                progress(start + samples, total, name)

            shards[shard.split].append(_shard(options, out, shard, report))
            done += shard.samples
        bad = {name: reason for split in shards.values() for shard in split for name, reason in shard.notes.items()}
        if len(bad) > options.max_bad:
            raise SourceError(_too_many_bad(bad, options.max_bad))
        publish(
            out,
            shards,
            sample_rate=options.sample_rate,
            source=source | {"left_out": bad},
            licence=options.licence or _licence_beside(options.source),
        )
    return _outcome(out, was_there=False)


@dataclass(frozen=True)
class _PlannedShard:
    split: str
    label: str
    inputs: list[Input]
    samples: int
    """Estimated from the headers."""


def _splits(options: Options, inputs: list[Input]) -> dict[str, list[Input]]:
    """Give every input its split, by the lists or by the rule; raises SourceError if a split stays empty."""
    if options.lists is not None:
        splits = splits_by_lists(options.lists, options.source, inputs)
    else:
        splits = {name: [] for name in manifests.SPLITS}
        for item in inputs:
            splits[split_of(item.name, options.split_by, options.valid_percent, options.test_percent)].append(item)
    empty = [name for name, items in splits.items() if not items]
    if empty:
        raise SourceError(
            f"split {empty[0]!r} would be empty: {len(inputs)} files are too few for the rule "
            f"(--split-by {options.split_by}, --valid-percent {options.valid_percent:g}, --test-percent "
            f"{options.test_percent:g}); raise the percentages or give --list-train, --list-valid and --list-test"
            if options.lists is None
            else f"split {empty[0]!r} is empty: {options.lists[empty[0]]} names no file"
        )
    return splits


def _source(options: Options, splits: Mapping[str, list[Input]]) -> dict[str, Any]:
    """Describe what the data are made from; equal descriptions give equal bytes."""
    names = {split: [item.name for item in items] for split, items in splits.items()}
    rule: dict[str, Any] = {"rule": "list files", "sha256": _json_sha256(names)}
    if options.lists is None:
        rule = {
            "rule": f"sha256 of the path of the {options.split_by} under the source",
            "valid_percent": options.valid_percent,
            "test_percent": options.test_percent,
        }
    listing = sorted([item.name, item.bytes, item.edges] for items in splits.values() for item in items)
    return {
        "converter": "speech",
        "version": VERSION,
        "split": rule,
        "sample_rate": options.sample_rate,
        "shard_mb": options.shard_mb,
        "files": len(listing),
        "bytes": sum(item.bytes for items in splits.values() for item in items),
        "inputs_sha256": _json_sha256(listing),
    }


def _existing(out: Path, source: dict[str, Any]) -> Outcome:
    """Return the finished store in `out` if it was made from the same input; raises StoreError if not."""
    manifest = Manifest.read(out)
    differing = [name for name in source if manifest.source.get(name) != source[name]]
    if differing:
        raise StoreError(
            f"{out}: holds a data set made from other input or options (different: {', '.join(differing)}); "
            f"choose another --out, or remove the folder to make it anew"
        )
    clean(out, manifest)  # an earlier run may have been killed between publishing and tidying up
    return _outcome(out, was_there=True)


def _outcome(out: Path, *, was_there: bool) -> Outcome:
    """Describe a finished store; opening it checks the size of every file."""
    store = Store.open(out, "size")
    short = sum(int((store.lengths(split) < SHORT_SAMPLES).sum()) for split in store.splits)
    return Outcome(store.manifest, was_there, store.manifest.source["left_out"], short)


def _plan(options: Options, split: str, inputs: list[Input]) -> Iterator[_PlannedShard]:
    """Cut the inputs of a split into shards of about `shard_mb`, by the lengths that their headers claim."""
    limit = options.shard_mb * (1 << 20) // 2
    number, chosen, samples = 0, list[Input](), 0
    for item in inputs:
        estimate = audio.estimated_samples(options.source / item.name, options.sample_rate)
        if chosen and samples + estimate > limit:
            yield _PlannedShard(split, f"{split}-{number:05d}", chosen, samples)
            number, chosen, samples = number + 1, [], 0
        chosen.append(item)
        samples += estimate
    yield _PlannedShard(split, f"{split}-{number:05d}", chosen, samples)


def _shard(options: Options, out: Path, shard: _PlannedShard, report: Callable[[int, str], None]) -> FinishedShard:
    """Convert the inputs of a shard, unless an earlier run has done so."""
    listing = [[item.name, item.bytes, item.edges] for item in shard.inputs]
    key = _json_sha256([VERSION, options.sample_rate, listing])
    finished = finished_shard(out, shard.label, key)
    if finished is not None:
        report(shard.samples, shard.label)
        return finished
    notes: dict[str, str] = {}

    def recordings() -> Iterator[Recording]:
        done = 0
        for item in shard.inputs:
            try:
                samples = audio.read(options.source / item.name, options.sample_rate)
            except audio.AudioError as error:
                notes[item.name] = str(error)
                continue
            done += samples.size
            report(done, item.name)
            yield Recording(item.name, samples)

    return write_shard(out, shard.label, key, recordings(), notes)


def _too_many_bad(bad: Mapping[str, str], most: int) -> str:
    lines = "\n".join(f"  {name}: {reason}" for name, reason in bad.items())
    return (
        f"{len(bad)} files cannot be used, --max-bad allows {most}:\n{lines}\n"
        f"mend or remove them, or leave them out with --max-bad {len(bad)}; what is converted is kept"
    )


def _licence_beside(source: Path) -> str:
    """Return the text of a licence file in the source folder, or nothing."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.upper().startswith(LICENCE_NAMES):
            return path.read_text(errors="replace")
    return ""


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
