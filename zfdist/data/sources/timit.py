"""TIMIT (LDC93S1): which of its files are utterances, and who is in which split.

The tree is TIMIT/{TRAIN,TEST}/DR1 .. DR8/SPEAKER/SENTENCE.WAV, in capitals or not. The files are NIST SPHERE; many
copies have a RIFF twin of each beside it, which would count every utterance twice.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zfdist.data.manifest import SPLITS
from zfdist.data.output import Where
from zfdist.data.sources.convert import Outcome, Progress, silent
from zfdist.data.sources.inputs import Input, Listing, SourceError, list_inputs
from zfdist.data.sources.lists import listed_names
from zfdist.data.sources.places import Source, local, shown
from zfdist.data.sources.speech import Options, lists_rule, prepare_files
from zfdist.data.sources.workers import Workers, here

VERSION = 1
SPHERE = b"NIST_1A"

_PLACE = re.compile(r"(?:^|.*/)(train|test)/(dr\d)/([a-z0-9]+)/([a-z0-9]+)$")


@dataclass(frozen=True, kw_only=True)
class Timit(Options):
    """What to convert and how; the rule of the splits is TIMIT's own."""

    valid_percent: float = 5.0
    """Share of the training speakers for validation; `test_percent` is not used: TEST is the test."""
    test_percent: float = 0.0
    leave_out_sa: bool = False
    """Leave out the two sentences that every speaker reads."""

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        super().__post_init__()
        if self.append:
            raise SourceError("--append: TIMIT is prepared whole, as its validation speakers follow from all")


@dataclass(frozen=True)
class Found:
    """What the tree holds: utterances by identity "train/dr1/fcjf0/sa1", and how many twins were passed over."""

    utterances: dict[str, Input]
    twins: int
    listing: Listing
    elsewhere: int
    """Sound files whose path is not that of an utterance."""


def prepare(options: Timit, out: Where, progress: Progress = silent, workers: Workers = here) -> Outcome:
    """Convert a TIMIT tree to a store in folder or URI `out`; raises what `speech.prepare` does."""
    found = find(options.source)
    known = {name: item for name, item in found.utterances.items() if not (options.leave_out_sa and _is_sa(name))}
    splits = _by_rule(options, known) if options.lists is None else _by_lists(options, known)
    rule = lists_rule(splits)
    if options.lists is None:
        rule = {
            "rule": "folder TEST; of the speakers in TRAIN those with the smallest sha256 of the name are validation",
            "valid_percent": options.valid_percent,
        }
    source: dict[str, Any] = {
        "converter": "timit",
        "version": VERSION,
        "split": rule,
        "leave_out_sa": options.leave_out_sa,
        "twins": found.twins,
    }
    outcome = prepare_files(options, splits, source, out, progress, workers)
    unused = {
        "sound files at no path like TRAIN/DR1/FCJF0/SA1.WAV": found.elsewhere,
        "sentences SA1 and SA2": len(found.utterances) - len(known),
        "in no list": len(known) - sum(len(items) for items in splits.values()),
    }
    return replace(outcome, remarks=found.listing.remarks(unused))


def identity(path: str) -> str | None:
    """Return e.g. "train/dr1/fcjf0/sa1" for any spelling of a path to that sentence, or None for another path.

    What stands before the last four parts, case, the direction of slashes and all after the first dot are passed over.
    """
    folder, _, name = path.strip().replace("\\", "/").lower().rpartition("/")
    match = _PLACE.match(f"{folder}/{name.split('.')[0]}")
    return "/".join(match.groups()) if match else None


def speaker(name: str) -> str:
    """Return the speaker of a recording, e.g. "fcjf0"."""
    return (identity(name) or name).split("/")[-2]


def find(source: Source) -> Found:
    """Find the utterances of a TIMIT tree; raises SourceError if there are none or two SPHERE files of one.

    A RIFF file is a twin where there is a SPHERE file of the same sentence, and an utterance where there is none.
    """
    candidates: dict[str, list[Input]] = {}
    listing, elsewhere = list_inputs(source), 0
    for item in listing.inputs:
        place = identity(item.name)
        if place is not None:
            candidates.setdefault(place, []).append(item)
        elif item.name in listing.broken:
            raise SourceError(f"{shown(source)}: {item.name!r} is a link that leads nowhere; mend or remove it")
        else:
            elsewhere += 1
    if not candidates:
        raise SourceError(
            f"{shown(source)}: no path in it is like TRAIN/DR1/FCJF0/SA1.WAV; --source must be the folder that holds "
            "TIMIT's TRAIN and TEST, or one above it"
        )
    utterances, twins = {}, 0
    for place, items in sorted(candidates.items()):
        spheres = [item for item in items if len(items) > 1 and _is_sphere(source, item.name)] or items
        if len(spheres) > 1:
            names = ", ".join(item.name for item in spheres)
            raise SourceError(f"{shown(source)}: {names} are the same utterance; remove all but one")
        utterances[place] = spheres[0]
        twins += len(items) - 1
    return Found(utterances, twins, listing, elsewhere)


def _is_sphere(source: Source, name: str) -> bool:
    with local(source, name) as path:
        try:
            with path.open("rb") as file:
                return file.read(len(SPHERE)) == SPHERE
        except OSError:
            return False


def _is_sa(place: str) -> bool:
    return place.rpartition("/")[2].startswith("sa")


def _by_rule(options: Timit, known: Mapping[str, Input]) -> dict[str, list[Input]]:
    """TEST is the test; of TRAIN's speakers a share, at least one, is validation: those whose names hash lowest."""
    speakers = sorted(
        {place.split("/")[2] for place in known if place.startswith("train/")},
        key=lambda name: hashlib.sha256(name.encode()).digest(),
    )
    held_out = set(speakers[: max(1, round(len(speakers) * options.valid_percent / 100))])
    splits: dict[str, list[Input]] = {name: [] for name in SPLITS}
    for place, item in known.items():
        folder, _, who, _ = place.split("/")
        splits["test" if folder == "test" else "valid" if who in held_out else "train"].append(item)
    empty = [name for name, items in splits.items() if not items]
    if empty:
        raise SourceError(
            f"{shown(options.source)}: split {empty[0]!r} would be empty: TRAIN has {len(speakers)} speakers, TEST has "
            f"{len(splits['test'])} utterances; give the whole tree, or the three lists"
        )
    return splits


def _by_lists(options: Timit, known: Mapping[str, Input]) -> dict[str, list[Input]]:
    """Read the list files: any spelling of a path to each utterance, one a line."""
    owner: dict[str, str] = {}
    for split, path in (options.lists or {}).items():
        places = {name: identity(name) for name in listed_names(path, f"--list-{split}")}
        if options.leave_out_sa:
            places = {name: place for name, place in places.items() if place is None or not _is_sa(place)}
        missing = [name for name, place in places.items() if place not in known]
        if missing:
            raise SourceError(
                f"--list-{split} {path}: {len(missing)} of {len(places)} utterances are not under "
                f"{shown(options.source)}, the first is {missing[0]!r}"
            )
        for name, place in places.items():
            if place in owner:
                raise SourceError(f"--list-{split} {path}: {name!r} is already in the list of {owner[place]}")
            owner[str(place)] = split
    splits: dict[str, list[Input]] = {name: [] for name in SPLITS}
    for place, item in known.items():
        if place in owner:
            splits[owner[place]].append(item)
    empty = [name for name, items in splits.items() if not items]
    if empty:
        raise SourceError(f"split {empty[0]!r} is empty: {(options.lists or {})[empty[0]]} names no file")
    return splits
