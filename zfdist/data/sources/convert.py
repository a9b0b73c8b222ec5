"""What all converters share: planned shards to a store, resumable; bad input collected; the same bytes every time."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zfdist.data import manifest as manifests
from zfdist.data.append import append
from zfdist.data.kinds import PCM16, Kind
from zfdist.data.manifest import StoreManifest
from zfdist.data.output import UNFINISHED, Where, output_at
from zfdist.data.sources.places import SourceError
from zfdist.data.sources.workers import Report, Told, Workers, here
from zfdist.data.store import Store, StoreError
from zfdist.data.store_writer import (
    FinishedShard,
    Recording,
    clean,
    finished_shard,
    publish,
    write_shard,
    writing,
)

SHORT_SAMPLES = 400
"""Two of the usual frames: a recording with less has nothing to predict."""
LISTED = 50
"""What a message says of inputs in lines; the rest is counted."""
_NAMED = 3
"""Inputs that are named where the same is to be said of several."""

Progress = Callable[[int, int, str], None]
"""Called with samples done, samples in all (estimated) and the shard or input in hand."""


def silent(done: int, total: int, name: str) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be made: what of, and how."""

    split: str
    label: str
    """Its name in the store, e.g. "train-00003"."""
    key: str
    """Hash over all that its bytes follow from; a shard that an earlier run made from the same key is kept."""
    samples: int
    """About how many it will have; for the progress alone."""
    recordings: Callable[[dict[str, str], Report], Iterator[Recording]]
    """Makes its recordings; puts into the dict the reason where an input gives none, or what is to be said of it.

    To be made by another process it must be a function of a module, or a `partial` of one.
    """


@dataclass(frozen=True)
class Outcome:
    """What a converter left behind."""

    manifest: StoreManifest
    was_there: bool
    """The store had been finished before from the same input."""
    bad: dict[str, str]
    """Inputs that gave no recording, with the reason."""
    doubtful: dict[str, str]
    """Inputs that were read, with what should be known of them."""
    short: int
    """Recordings of sound of fewer than SHORT_SAMPLES samples."""
    remarks: tuple[str, ...] = ()
    """Sentences on what lay beside the input and was not read, for the summary."""


def existing(out: Where, source: Mapping[str, Any]) -> Outcome | None:
    """Return the finished store in `out`, None if there is none; raises StoreError if it was made from other input."""
    output, manifest = output_at(out), manifest_at(out)
    if manifest is None:
        return None
    differing = [name for name in source if manifest.source.get(name) != source[name]]
    if differing:
        raise StoreError(
            f"{output.shown}: holds a data set made from other input or options (different: {', '.join(differing)}); "
            f"choose another --out, or remove the folder to make it anew"
        )
    if any(name.startswith(f"{UNFINISHED}/") for name in output.names()):
        # An earlier run may have been killed between publishing and tidying up; or another is adding to the store.
        with contextlib.suppress(StoreError), writing(out, is_finished=True):
            clean(out, manifest)
    return outcome_of(out, was_there=True)


def manifest_at(out: Where) -> StoreManifest | None:
    """Return the manifest of a finished store, None if there is none; raises StoreError if it is damaged."""
    output = output_at(out)
    content = output.read(manifests.NAME)
    return None if content is None else StoreManifest.parse(content, f"{output.shown}/{manifests.NAME}")


def convert(
    out: Where,
    plan: Iterable[PlannedShard],
    *,
    source: Mapping[str, Any],
    licence: str,
    total: int | None = None,
    progress: Progress = silent,
    kind: Kind = PCM16,
    sample_rate: int = 0,
    max_bad: int = 0,
    words: Sequence[str] | None = None,
    doubtful: Mapping[str, str] | None = None,
    workers: Workers = here,
    appended_to: StoreManifest | None = None,
) -> Outcome:
    """Make the planned shards, but for those that an earlier run has made, and publish the store.

    With `appended_to` they become the next part of that store, which is in `out`.

    `plan` is drawn from when the right to write is held, so what takes long belongs into it; without `total` the
    samples are those that it promises. `doubtful`, remarks beside the notes of the shards, is read at the end.
    `source` describes what the data are made from: equal ones give equal bytes, by any `workers`.
    Raises SourceError if more than `max_bad` inputs are bad, StoreError if `out` holds something else.
    """
    with writing(out, is_finished=appended_to is not None):
        _refuse_changed(out, appended_to)
        planned = list(plan)
        promised = sum(shard.samples for shard in planned)
        tell = told(planned, promised if total is None else total, progress)
        made: dict[int, FinishedShard] = {}
        for place, finished in workers(partial(_made, out, kind), planned, tell):
            made[place] = finished
            tell(place, planned[place].samples, planned[place].label)
        shards: dict[str, list[FinishedShard]] = {name: [] for name in manifests.SPLITS}
        for place, shard in enumerate(planned):
            shards[shard.split].append(made[place])
        bad: dict[str, str] = {}
        said = dict(doubtful or {})
        for finished in (finished for split in shards.values() for finished in split):
            names = set(finished.names)
            for name, note in finished.notes.items():
                (said if name in names else bad)[name] = note
        if len(bad) > max_bad:
            raise SourceError(too_many_bad(bad, max_bad))
        described = {**source, "left_out": bad} | ({"doubtful": said} if said else {})
        if appended_to is not None:
            append(out, appended_to, shards, described)
            return outcome_of(out, was_there=False)
        publish(
            out,
            shards,
            sample_rate=sample_rate,
            source=described,
            licence=licence,
            kind=kind,
            words=words,
        )
    return outcome_of(out, was_there=False)


def _refuse_changed(out: Where, appended_to: StoreManifest | None) -> None:
    if appended_to is not None and appended_to != manifest_at(out):
        shown = output_at(out).shown
        raise StoreError(f"{shown}: was added to by another process meanwhile; give the command again")


def told(planned: Sequence[PlannedShard], total: int, progress: Progress) -> Told:
    """Return who is told how far the making of each shard is, and shows how far all are together."""
    done = dict.fromkeys(range(len(planned)), 0)

    def tell(place: int, samples: int, name: str) -> None:
        if samples > done[place]:
            done[place] = samples
            progress(sum(done.values()), total, name)

    return tell


def _made(out: Where, kind: Kind, shard: PlannedShard, report: Report) -> FinishedShard:
    """Return a shard, made now unless an earlier run has done so."""
    finished = finished_shard(out, shard.label, shard.key)
    if finished is None:
        notes: dict[str, str] = {}
        finished = write_shard(out, shard.label, shard.key, shard.recordings(notes, report), notes, kind)
    return finished


def outcome_of(out: Where, *, was_there: bool) -> Outcome:
    """Describe a finished store; opening it checks the size of every file."""
    store = Store.open(out, "size")
    short = 0
    if store.kind.frame_samples is None:
        short = sum(int((store.lengths(split) < SHORT_SAMPLES).sum()) for split in store.splits)
    sources = [part.source for part in store.manifest.parts or ()] or [store.manifest.source]
    bad = {name: reason for source in sources for name, reason in source["left_out"].items()}
    doubtful = {name: remark for source in sources for name, remark in source.get("doubtful", {}).items()}
    return Outcome(store.manifest, was_there, bad, doubtful, short)


def too_many_bad(bad: Mapping[str, str], most: int, what: str = "files") -> str:
    """Say what is wrong with the inputs that cannot be used, and what to do about it."""
    return (
        f"{len(bad)} {what} cannot be used, --max-bad allows {most}:\n{named(bad)}\n"
        f"mend or remove them, or leave them out with --max-bad {len(bad)}; what is converted is kept"
    )


def named(said: Mapping[str, str]) -> str:
    """Return a line for each thing that is said of inputs, with the first of them and how many more there are."""
    inputs: dict[str, list[str]] = {}
    for name, what in said.items():
        inputs.setdefault(what, []).append(name)
    lines = [f"  {_first(names)}: {what}" for what, names in list(inputs.items())[:LISTED]]
    rest = sum(map(len, list(inputs.values())[LISTED:]))
    return "\n".join([*lines, *([f"  and {rest:,} more"] if rest else [])])


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def json_sha256(value: Any) -> str:
    """Return the hash of a value by its JSON."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
