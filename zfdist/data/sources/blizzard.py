"""Blizzard 2013 by the published row split: a long recording cut into streams, and the rows of the streams into splits.

The published preparation (of the VRNN, used by all papers since) joins the chapters of a group of 200 in a given order,
cuts the whole into 128 streams of equal length, and writes rows of 8,000 samples, time by time: of a group whose first
row is R, row R + 128 i + j holds samples 8,000 i .. 8,000 (i + 1) of stream j. Rows below 2,040,064 are training, those
below 2,152,704 validation, those below 2,266,880 the test.

Here a recording is a stream's part in a split, so that a segment of 40 frames of 200 samples is a row, and the target
of its last frame is the first frame of the next row of the same stream. (The code released with the paper took the next
row of the file instead, which is the neighbouring stream.) The last row of a stream in a split has no next row in it
and scores one frame fewer: no sample is in two splits.

Unlike the published preparation, channels are averaged, and sound is resampled by our own filter.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.data.manifest import SPLITS
from zfdist.data.output import UNFINISHED, Output, Where, output_at
from zfdist.data.sources import audio
from zfdist.data.sources.convert import (
    Outcome,
    PlannedShard,
    Progress,
    convert,
    existing,
    json_sha256,
    silent,
    too_many_bad,
)
from zfdist.data.sources.inputs import Input, Listing, SourceError, list_inputs
from zfdist.data.sources.lists import lines_of_list, resolved
from zfdist.data.sources.places import licence_beside, local, shown
from zfdist.data.sources.speech import Options, described, listed
from zfdist.data.sources.workers import Report, Workers, here
from zfdist.data.store_writer import Recording

VERSION = 1
ROW_SAMPLES = 8000


@dataclass(frozen=True, kw_only=True)
class Rows(Options):
    """What to convert and how; the options of the base that find splits are not used."""

    order_list: Path
    """File that fixes the order: a path under the source on each line."""
    group_files: int = 200
    """Files that are joined; an empty line in the list ends a group early."""
    streams: int = 128
    valid_row: int = 2_040_064
    test_row: int = 2_152_704
    end_row: int = 2_266_880

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        super().__post_init__()
        if self.append:
            raise SourceError("--append: is for --split chapters, as rows are numbered over the whole of the set")
        if self.max_bad:
            raise SourceError("--max-bad: must be 0 for --split rows, as a file left out would move all rows after it")
        for name in ("group_files", "streams"):
            if getattr(self, name) < 1:
                raise SourceError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not 0 < self.valid_row < self.test_row < self.end_row:
            raise SourceError(
                f"--valid-row {self.valid_row}, --test-row {self.test_row} and --end-row {self.end_row}: must rise"
            )
        for name in ("valid_row", "test_row", "end_row"):
            if getattr(self, name) % self.streams:
                raise SourceError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be a multiple of --streams {self.streams}"
                )


def prepare(options: Rows, out: Where, progress: Progress = silent, workers: Workers = here) -> Outcome:
    """Convert the files of the order list to a store in folder or URI `out` by the row split.

    All files are decoded first, since where a row lies follows from the lengths of all before it; so it needs room for
    the whole sound as int16 besides the store. Memory is bounded. Raises SourceError if files are missing, cannot be
    read (a missing one would move all rows after it), or give too few rows.
    """
    listing = list_inputs(options.source)
    groups = _groups(options, listing)
    inputs = [item for group in groups for item in group]
    boundaries = {name: getattr(options, name) for name in ("streams", "valid_row", "test_row", "end_row")}
    order = json_sha256([[item.name for item in group] for group in groups])
    source: dict[str, Any] = {
        "converter": "blizzard",
        "version": VERSION,
        "split": {"rule": "rows", "row_samples": ROW_SAMPLES, **boundaries, "groups": len(groups), "order": order},
        **described(options, inputs),
    }
    remarks = listing.remarks({"not in the order list": len(listing.inputs) - len(inputs)})
    outcome = existing(out, source)
    if outcome is not None:
        return replace(outcome, remarks=remarks)
    doubtful: dict[str, str] = {}
    outcome = convert(
        out,
        _plan(options, out, groups, progress, doubtful, workers),
        source=source,
        licence=options.licence or licence_beside(options.source),
        total=options.end_row * ROW_SAMPLES,
        progress=progress,
        sample_rate=options.sample_rate,
        doubtful=doubtful,
        workers=workers,
    )
    return replace(outcome, remarks=remarks)


def _groups(options: Rows, listing: Listing) -> list[list[Input]]:
    """Read the order list: groups of files in order; raises SourceError for a file that is missing or comes twice."""
    known = {item.name: item for item in listing.inputs}
    groups: list[list[Input]] = [[]]
    seen: dict[str, int] = {}
    for number, text in enumerate(lines_of_list(options.order_list, "--order-list"), start=1):
        where = f"--order-list {options.order_list}, line {number}: {text!r}"
        line = resolved(text, options.source, known)
        if text.startswith("#"):
            continue
        if groups[-1] and (not line or len(groups[-1]) == options.group_files):
            groups.append([])
        if not line:
            continue
        if line in seen:
            raise SourceError(f"{where} is also on line {seen[line]}; remove one of them")
        if line not in known:
            raise SourceError(f"{where} is no audio file under {shown(options.source)}")
        seen[line] = number
        groups[-1].append(known[line])
    if not groups[0]:
        raise SourceError(f"--order-list {options.order_list}: names no file")
    return [group for group in groups if group]


class _Piece(NamedTuple):
    """A file of a group as raw int16 in what is unfinished, or why it is not there."""

    name: str
    key: str
    samples: int
    said: str
    bad: str = ""


def _plan(
    options: Rows,
    out: Where,
    groups: list[list[Input]],
    progress: Progress,
    doubtful: dict[str, str],
    workers: Workers,
) -> Iterator[PlannedShard]:
    """Decode what is not yet, then yield the shards; what is to be said of files goes into `doubtful`."""
    pieces = _decoded(options, out, [item for group in groups for item in group], progress, workers)
    doubtful |= {piece.name: piece.said for piece in pieces if piece.said}
    if bad := {piece.name: piece.bad for piece in pieces if piece.bad}:
        raise SourceError(too_many_bad(bad, 0))
    known = {piece.name: piece for piece in pieces}
    planned: list[PlannedShard] = []
    row = 0
    for number, items in enumerate(groups):
        group = _Group(options, out, number, [known[item.name] for item in items])
        key = json_sha256([VERSION, options.sample_rate, [listed(item) for item in items]])
        planned += _shards(options, group, key, row)
        row += max(0, (group.samples // options.streams - 1) // ROW_SAMPLES) * options.streams
    if row < options.end_row:
        raise SourceError(
            f"the files of --order-list give {row:,} rows of {ROW_SAMPLES:,} samples, and --end-row is "
            f"{options.end_row:,}: the published boundaries hold for the whole of the published set; give --valid-row, "
            f"--test-row and --end-row (multiples of {options.streams}) for another"
        )
    yield from planned


def _decoded(options: Rows, out: Where, items: list[Input], progress: Progress, workers: Workers) -> list[_Piece]:
    """Decode files to pieces, but for those that an earlier run has decoded."""
    done = dict.fromkeys(range(len(items)), 0)
    total = options.end_row * ROW_SAMPLES

    def tell(place: int, samples: int, name: str) -> None:
        done[place] = samples
        progress(min(sum(done.values()), total), total, name)

    found: dict[int, _Piece] = {}
    for place, piece in workers(partial(_piece, options, out), items, tell):
        found[place] = piece
        tell(place, piece.samples, piece.name)
    return [found[place] for place in range(len(items))]


def _piece(options: Rows, out: Where, item: Input, report: Report) -> _Piece:
    """Return a file as a piece, decoded now unless an earlier run has done so."""
    key, output = json_sha256([VERSION, options.sample_rate, listed(item)]), output_at(out)
    try:
        known = json.loads(output.read(_name(key, "json")) or b"null")
        return _Piece(item.name, key, int(known["samples"]), str(known["said"]))
    except (ValueError, KeyError, TypeError):
        pass
    report(0, item.name)
    piece = _decode(options, output, item.name, key)
    if not piece.bad:
        content = json.dumps({"samples": piece.samples, "said": piece.said})
        output.write(_name(key, "json"), content.encode())
    return piece


def _decode(options: Rows, output: Output, name: str, key: str) -> _Piece:
    said: list[str] = []
    try:
        with local(options.source, name) as path:
            pcm = audio.read(path, options.sample_rate, said)
    except audio.AudioError as error:
        return _Piece(name, key, 0, "; ".join(said), str(error))
    with output.fresh() as fresh:
        pcm.tofile(fresh)
        output.keep(fresh, _name(key, "pcm"))
    return _Piece(name, key, pcm.size, "; ".join(said))


def _name(key: str, suffix: str) -> str:
    return f"{UNFINISHED}/piece-{key[:32]}.{suffix}"


class _Group(NamedTuple):
    """Files joined to one recording."""

    options: Rows
    out: Where
    number: int
    pieces: list[_Piece]

    @property
    def samples(self) -> int:
        return sum(piece.samples for piece in self.pieces)

    def window(self, start: int, stop: int) -> NDArray[np.int16]:
        """Return samples start .. stop - 1."""
        output, parts, first = output_at(self.out), list[NDArray[np.int16]](), 0
        for piece in self.pieces:
            low, high = max(start - first, 0), min(stop - first, piece.samples)
            first += piece.samples
            if low < high:
                content = output.read(_name(piece.key, "pcm"), 2 * low, 2 * (high - low))
                if content is None:  # somebody removed it
                    _decode(self.options, output, piece.name, piece.key)
                    content = output.read(_name(piece.key, "pcm"), 2 * low, 2 * (high - low))
                parts.append(np.frombuffer(content or b"", np.int16))
        joined = np.concatenate(parts)
        if joined.size != stop - start:
            raise SourceError(f"{output.shown}/{UNFINISHED}: is damaged; remove that folder and give the command again")
        return joined


def _shards(options: Rows, group: _Group, group_key: str, first_row: int) -> Iterator[PlannedShard]:
    """Yield the shards of a group that begins at row `first_row`: streams in order, about `shard_mb` a shard."""
    streams, stream_samples = options.streams, group.samples // options.streams
    chunks = max(0, (stream_samples - 1) // ROW_SAMPLES)  # the published rule, which wants a sample after the last row
    edges = [0, options.valid_row, options.test_row, options.end_row]
    for split, low, high in zip(SPLITS, edges[:-1], edges[1:], strict=True):
        begin, end = (min(max(0, (edge - first_row) // streams), chunks) for edge in (low, high))
        if begin == end:
            continue
        at_once = max(1, options.shard_mb * (1 << 20) // (2 * ROW_SAMPLES * (end - begin)))
        for part, first in enumerate(range(0, streams, at_once)):
            chosen = range(first, min(first + at_once, streams))
            key = json_sha256([VERSION, group_key, streams, chosen.start, chosen.stop, begin, end])
            label = f"{split}-{group.number:05d}-{part:03d}"
            recordings = partial(_recordings, group, stream_samples, chosen, begin, end)
            yield PlannedShard(split, label, key, len(chosen) * (end - begin) * ROW_SAMPLES, recordings)


def _recordings(
    group: _Group,
    stream_samples: int,
    chosen: range,
    begin: int,
    end: int,
    notes: dict[str, str],
    report: Report,
) -> Iterator[Recording]:
    """Read rows begin .. end - 1 of some streams of a group, a recording each."""
    for done, j in enumerate(chosen):
        name = f"group-{group.number:05d}/stream-{j:03d}/rows-{begin}-{end}"
        start = j * stream_samples
        yield Recording(name, group.window(start + begin * ROW_SAMPLES, start + end * ROW_SAMPLES))
        report((done + 1) * (end - begin) * ROW_SAMPLES, name)
