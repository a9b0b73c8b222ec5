"""A tree of audio files to a store: which files, which split, which shard; resumable, the same bytes every time."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zfdist.data.kinds import PCM16
from zfdist.data.manifest import SPLITS
from zfdist.data.output import Where
from zfdist.data.sources import appending, audio
from zfdist.data.sources.convert import (
    Outcome,
    PlannedShard,
    Progress,
    convert,
    existing,
    json_sha256,
    outcome_of,
    silent,
)
from zfdist.data.sources.inputs import (
    AT_ONCE,
    Input,
    SourceError,
    check_split_by,
    list_inputs,
    split_key,
    split_of_key,
)
from zfdist.data.sources.lists import splits_by_lists
from zfdist.data.sources.places import Source, licence_beside, local
from zfdist.data.sources.workers import Report, Workers, here
from zfdist.data.store_writer import Recording
from zfdist.object_store import is_remote

VERSION = 1
_LISTED = 12  # folders of a split that are named
SAMPLE = Path(__file__).parent / "sample" / "speech"
"""The speech that ships: one speaker, 16 kHz."""


@dataclass(frozen=True)
class Options:
    """What to convert and how; all but `source`, `licence` and `max_bad` shape the data."""

    source: Source
    sample_rate: int = 16_000
    split_by: str = "file"
    """What decides the split of a file, see `zfdist.data.sources.inputs.split_key`."""
    valid_percent: float = 10.0
    test_percent: float = 10.0
    lists: Mapping[str, Path] | None = None
    """A list file for each split instead of the rule."""
    shard_mb: int = 256
    licence: str = ""
    max_bad: int = 0
    append: bool = False
    """Whether the files join the finished store that is there."""

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        ranges = {"sample_rate": (1000, 768_000), "shard_mb": (1, 65_536), "max_bad": (0, 2**31)}
        for name, (low, high) in (ranges | {"valid_percent": (0, 100), "test_percent": (0, 100)}).items():
            if not low <= getattr(self, name) <= high:
                raise SourceError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {low} to {high}")
        check_split_by(self.split_by)
        if self.valid_percent + self.test_percent >= 100:
            raise SourceError(
                f"--valid-percent {self.valid_percent:g} and --test-percent {self.test_percent:g} "
                "leave nothing to train on: their sum must be below 100"
            )


def prepare(
    options: Options,
    out: Where,
    progress: Progress = silent,
    workers: Workers = here,
    converter: str = "speech",
) -> Outcome:
    """Convert a tree of audio files to a store in folder or URI `out`, or finish what an interrupted run began.

    `converter` is what the manifest calls it.
    Raises SourceError for unusable input (files that cannot be read are reported together, at the end), StoreError if
    `out` holds something else.
    """
    listing = list_inputs(options.source)
    splits = _splits(options, listing.inputs)
    source = {"converter": converter, "version": VERSION, "split": _rule(options, splits)}
    outcome = prepare_files(options, splits, source, out, progress, workers)
    unlisted = len(listing.inputs) - sum(len(items) for items in splits.values())
    said = listing.remarks({"in no list": unlisted})
    return replace(outcome, remarks=(*said, *(_whereabouts(options, splits) if options.lists is None else ())))


def prepare_files(
    options: Options,
    splits: Mapping[str, list[Input]],
    source: Mapping[str, Any],
    out: Where,
    progress: Progress,
    workers: Workers,
) -> Outcome:
    """Convert the files of each split, one recording a file; `source` names the converter and its split.

    Of the options, those that say how a split is found are not used.
    """
    source = {**source, **described(options, [item for items in splits.values() for item in items])}
    appended_to = appending.opened(out) if options.append else None
    if appended_to is not None:
        splits = appending.new_inputs(out, appended_to, source, splits)
        new = [item for items in splits.values() for item in items]
        if not new:
            return outcome_of(out, was_there=True)
        source |= described(options, new)
    else:
        outcome = existing(out, source)
        if outcome is not None:
            return outcome
    there = {} if appended_to is None else {name: len(split.shards) for name, split in appended_to.splits.items()}
    plan = (
        shard for name, inputs in splits.items() for shard in _plan(options, name, inputs, there.get(name, 0), progress)
    )
    return convert(
        out,
        plan,
        source=source,
        licence=options.licence or licence_beside(options.source),
        progress=progress,
        kind=PCM16,
        sample_rate=options.sample_rate,
        max_bad=options.max_bad,
        workers=workers,
        appended_to=appended_to,
    )


def _splits(options: Options, inputs: list[Input]) -> dict[str, list[Input]]:
    """Give every input its split, by the lists or by the rule; raises SourceError if a split stays empty."""
    if options.lists is not None:
        splits = splits_by_lists(options.lists, options.source, inputs)
    else:
        splits = {name: [] for name in SPLITS}
        for item in inputs:
            key = split_key(item.name, options.split_by)
            splits[split_of_key(key, options.valid_percent, options.test_percent)].append(item)
    empty = [name for name, items in splits.items() if not items]
    if empty and options.lists is not None and not options.append:
        raise SourceError(f"split {empty[0]!r} is empty: {options.lists[empty[0]]} names no file")
    if empty and not options.append:
        raise SourceError(_too_few(options, splits, empty[0]))
    return splits


def _too_few(options: Options, splits: Mapping[str, list[Input]], empty: str) -> str:
    """Return the sentence for a split that stays empty: what there is, and where it falls."""
    keys = _keys(options, splits)
    count, unit = sum(map(len, keys.values())), _unit(options.split_by)
    fell = ", ".join(f"{len(found)} in {name}" for name, found in keys.items())
    return (
        f"split {empty!r} would be empty: {count} {unit}{'s' * (count != 1)} "
        f"{'are' if count != 1 else 'is'} too few for the rule (--split-by {options.split_by}, --valid-percent "
        f"{options.valid_percent:g}, --test-percent {options.test_percent:g}; they fall {fell}); raise the "
        "percentages, split by something finer, or give --list-train, --list-valid and --list-test"
    )


def _keys(options: Options, splits: Mapping[str, list[Input]]) -> dict[str, list[str]]:
    """Return what decided, by the split where it falls."""
    return {name: sorted({split_key(item.name, options.split_by) for item in items}) for name, items in splits.items()}


def _unit(split_by: str) -> str:
    return "file" if split_by == "file" else "folder" if split_by == "folder" or split_by.isdecimal() else "group"


def _whereabouts(options: Options, splits: Mapping[str, list[Input]]) -> Iterator[str]:
    """Say in which split each folder falls, and which folders are spread over several."""
    keys = _keys(options, splits)
    if options.split_by != "file":
        for name, found in keys.items():
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            listed = ", ".join(key or "." for key in found[:_LISTED])
            yield f"{name}: {len(found)} {_unit(options.split_by)}{'s' * (len(found) != 1)}: {listed}{more}"
    if options.split_by == "folder":
        above: dict[str, set[str]] = {}
        for name, found in keys.items():
            for key in found:
                above.setdefault(key.partition("/")[0], set()).add(name)
        spread = sorted(folder for folder, names in above.items() if len(names) > 1)
        if spread:
            yield (
                f"{len(spread)} of {len(above)} top folders are in several splits through their subfolders, e.g. "
                f"{spread[0]}: if each is a voice, pass --split-by 1"
            )


def _rule(options: Options, splits: Mapping[str, list[Input]]) -> dict[str, Any]:
    """Describe how the splits came about."""
    if options.lists is not None:
        return lists_rule(splits)
    by = options.split_by
    what = f"the path of the {by}" if by in ("file", "folder") else f"what {by!r} finds in the path"
    if by.isdecimal():
        what = f"the first {by} folders of the path"
    return {
        "rule": f"sha256 of {what} under the source",
        "valid_percent": options.valid_percent,
        "test_percent": options.test_percent,
    }


def lists_rule(splits: Mapping[str, list[Input]]) -> dict[str, Any]:
    """Describe splits that list files gave."""
    names = {split: [item.name for item in items] for split, items in splits.items()}
    return {"rule": "list files", "sha256": json_sha256(names)}


def described(options: Options, inputs: Sequence[Input]) -> dict[str, Any]:
    """Describe the files and how they are converted."""
    listing = sorted(listed(item) for item in inputs)
    return {
        "sample_rate": options.sample_rate,
        "shard_mb": options.shard_mb,
        "files": len(listing),
        "bytes": sum(item.bytes for item in inputs),
        "inputs_sha256": json_sha256(listing),
    }


def listed(item: Input) -> list[Any]:
    """Return an input as it goes into a hash."""
    return [item.name, item.bytes, item.edges]


def _plan(options: Options, split: str, inputs: list[Input], first: int, progress: Progress) -> Iterator[PlannedShard]:
    """Cut the inputs of a split into shards of about `shard_mb`, by the lengths that their headers claim.

    `first` is the number of the first shard.
    """
    limit = options.shard_mb * (1 << 20) // 2
    number, chosen, samples = first, list[Input](), 0
    with ThreadPoolExecutor(AT_ONCE if is_remote(str(options.source)) else 1) as threads:
        estimates = threads.map(partial(_estimated_samples, options), inputs)
        for item, estimate in zip(inputs, estimates, strict=True):
            progress(0, 0, item.name)
            if chosen and samples + estimate > limit:
                yield _planned(options, split, number, chosen, samples)
                number, chosen, samples = number + 1, [], 0
            chosen.append(item)
            samples += estimate
    if chosen or not first:
        yield _planned(options, split, number, chosen, samples)


def _estimated_samples(options: Options, item: Input) -> int:
    with local(options.source, item.name) as path:
        return audio.estimated_samples(path, options.sample_rate)


def _planned(options: Options, split: str, number: int, inputs: list[Input], samples: int) -> PlannedShard:
    key = json_sha256([VERSION, options.sample_rate, [listed(item) for item in inputs]])
    recordings = partial(_recordings, options.source, options.sample_rate, [item.name for item in inputs])
    return PlannedShard(split, f"{split}-{number:05d}", key, samples, recordings)


def _recordings(
    source: Source, sample_rate: int, names: list[str], notes: dict[str, str], report: Report
) -> Iterator[Recording]:
    """Read the files of a shard."""
    done = 0
    for name in names:
        said: list[str] = []
        try:
            with local(source, name) as path:
                pcm = audio.read(path, sample_rate, said)
        except audio.AudioError as error:
            notes[name] = str(error)
            continue
        if said:
            notes[name] = "; ".join(said)
        done += pcm.size
        report(done, name)
        yield Recording(name, pcm)
