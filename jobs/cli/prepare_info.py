"""What `zfdist prepare info` and `verify` print of a finished data set."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.cli import prepare_summary
from jobs.cli.command import refuse, say
from jobs.cli.command import shown as place_shown
from jobs.cli.prepare_progress import SAY_EVERY_S

if TYPE_CHECKING:
    from zfdist.data.store import Store

BINS = 12
"""Rows of the figure of lengths, each half an octave or more."""
BAR = 40


def verify(where: Path | str) -> None:
    """Check all of a data set, say that it is whole, or refuse with all that is wrong."""
    from zfdist.data import verify as checking

    latest_s = time.monotonic()

    def checked(done: int, total: int, name: str) -> None:
        nonlocal latest_s
        if time.monotonic() - latest_s >= SAY_EVERY_S:
            latest_s = time.monotonic()
            say(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB checked, at {name}")

    wrong = checking.verify(where, checked)
    if wrong:
        rest = f"\n  and {len(wrong) - 50} more" if len(wrong) > 50 else ""
        lines = "\n".join(f"  {line}" for line in wrong[:50])
        refuse(f"{place_shown(str(where))} is damaged:\n{lines}{rest}")
    say(f"{place_shown(str(where))}: every file and every recording is what the manifest says")


def lines(where: Path | str) -> Iterator[str]:
    """Yield what is in a data set, from its manifest and indices alone."""
    from zfdist.data.store import Store

    store = Store.open(where, "size")
    manifest = store.manifest
    parts = f", {manifest.generation} parts" if manifest.generation > 1 else ""
    rate = f" at {store.sample_rate:,} Hz" if store.sample_rate else ""
    yield f"{place_shown(str(where))}: {store.kind.title}{rate}{parts}, fingerprint {store.fingerprint}"
    converter = manifest.source.get("converter", "unknown")
    licence = manifest.licence.strip().splitlines()
    yield f"made by {converter}; licence: {licence[0] if licence else 'none is named'}"
    yield f"samples are normalised by mean {store.mean:.6g} and std {store.std:.6g}"
    yield ""
    unit = "s" if store.sample_rate else f"{store.kind.sample}s"
    per_unit = store.sample_rate or 1
    total = f"{'hours':>10}" if store.sample_rate else f"{store.kind.sample + 's':>14}"
    spans = f"{'shortest':>10}{'median':>10}{'longest':>10} {unit:<8}"
    yield f"{'split':<8}{store.kind.rows:>12}{total}{spans}{'MiB':>9}{'shards':>7}"
    for name in store.splits:
        lengths = store.lengths(name)
        shards = manifest.splits[name].shards
        size = lengths.sum() / store.sample_rate / 3600 if store.sample_rate else lengths.sum()
        size_text = f"{size:>10,.2f}" if store.sample_rate else f"{size:>14,}"
        spans = "".join(f"{value / per_unit:>10,.4g}" for value in (lengths.min(), np.median(lengths), lengths.max()))
        mib = sum(shard.bytes for shard in shards) / (1 << 20)
        yield f"{name:<8}{len(lengths):>12,}{size_text}{spans} {'':<8}{mib:>9,.1f}{len(shards):>7}"
    yield from _owners(store)
    if store.kind.width is None:
        yield ""
        yield from figure(store.lengths("train") / per_unit, f"{store.kind.rows} of train by length, {unit}")


def _owners(store: "Store") -> Iterator[str]:
    """Yield the speakers where they are known, else the folders that recordings lay in, if there are any."""
    if store.manifest.source.get("converter") == "timit":
        yield from prepare_summary.speakers(store)
        return
    if not store.sample_rate:
        return
    for name in store.splits:
        folders = {recording.rpartition("/")[0] for recording in store.names(name)}
        if folders - {""}:
            yield f"{name}: recordings of {len(folders):,} folders (speakers, if each has its own)"


def figure(lengths: NDArray[np.float64], title: str) -> Iterator[str]:
    """Yield a histogram as text: bars of the counts of lengths, between edges that grow by a fixed ratio."""
    low, high = float(lengths.min()), float(lengths.max())
    yield title
    if low == high:
        yield f"{low:>10,.4g}  all {len(lengths):,}"
        return
    edges = np.geomspace(low, high, BINS + 1)
    edges[-1] = high
    counts, _ = np.histogram(lengths, np.maximum.accumulate(edges))
    yield from _bars(edges, counts.tolist())


def _bars(edges: NDArray[np.float64], counts: Sequence[int]) -> Iterator[str]:
    most = max(counts)
    for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "#" * max(round(BAR * count / most), count > 0)
        yield f"{start:>10,.4g} to {stop:>10,.4g}  {bar:<{BAR}} {count:,}"
