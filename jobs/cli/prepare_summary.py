"""What `zfdist prepare` says of a finished data set: a line for each split, in the terms of its kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zfdist.data.as_trained import unknown_words
from zfdist.data.kinds import KINDS, SPECIALS, Kind
from zfdist.data.manifest import StoreManifest
from zfdist.data.sources import timit
from zfdist.data.store import Store

MOST_LABELS = 20
"""Values of labels that are listed; the others are counted."""


def lines(out: Path | str, manifest: StoreManifest) -> Iterator[str]:
    """Yield the table of a data set."""
    kind = KINDS[manifest.kind]
    if kind.has_vocabulary:
        yield from _sentences(Store.open(out, "size"))
        return
    yield from _recordings(manifest) if manifest.sample_rate else _rows(manifest, kind)
    if "binarised" in manifest.source:
        yield f"{kind.sample}s are 0 or 1 and not normalised; binarised: {manifest.source['binarised']}"
    if manifest.source.get("converter") == "timit":
        yield from speakers(Store.open(out, "size"))


def _recordings(manifest: StoreManifest) -> Iterator[str]:
    yield f"{'split':<8}{'recordings':>11}{'minutes':>10}{'samples':>14}{'mean':>9}{'std':>10}{'shards':>8}"
    for name, split in manifest.splits.items():
        minutes = split.samples / manifest.sample_rate / 60
        yield (
            f"{name:<8}{split.recordings:>11,}{minutes:>10.2f}{split.samples:>14,}{split.statistics.mean:>9.3f}"
            f"{split.statistics.std:>10.2f}{len(split.shards):>8}"
        )
    normalisation = manifest.normalisation
    yield f"normalised by mean {normalisation.mean:.6g} and std {normalisation.std:.6g} of {normalisation.split}"
    for name, split in manifest.splits.items():
        if split.statistics.std < 1:
            yield (
                f"warning: {name} is almost silent: its std of {split.statistics.std:.3g} is below 1, one step of 16 "
                "bits; see whether its channel was muted or its scale is wrong"
            )


def speakers(store: Store) -> Iterator[str]:
    """Yield how many speakers of TIMIT a store has."""
    for split in store.splits:
        names = store.names(split)
        yield f"{split}: {len({timit.speaker(name) for name in names})} speakers, {len(names):,} utterances"
    twins = store.manifest.source["twins"]
    if twins:
        yield f"{twins:,} RIFF twins of SPHERE files passed over"


def _rows(manifest: StoreManifest, kind: Kind) -> Iterator[str]:
    yield f"{'split':<8}{kind.rows:>9}{kind.sample + 's':>14}{'mean':>10}"
    for name, split in manifest.splits.items():
        yield f"{name:<8}{split.recordings:>9,}{split.samples:>14,}{split.statistics.mean:>10.6f}"


def _sentences(store: Store) -> Iterator[str]:
    manifest, known = store.manifest, len(store.vocabulary())
    yield f"{'split':<8}{'sentences':>11}{'tokens':>12}{'covered':>10}{'<unk>':>9}{'labels':>9}"
    for name, split in manifest.splits.items():
        unknown = 100 * unknown_words(store, name) / split.samples
        labels = store.labels(name)
        labelled = 0 if labels is None else int((labels >= 0).sum())
        counts = f"{name:<8}{split.recordings:>11,}{split.samples:>12,}"
        yield f"{counts}{100 - unknown:>8.2f} %{unknown:>7.2f} %{labelled:>9,}"
    yield (
        f"vocabulary of {known:,}: {known - len(SPECIALS):,} of the {manifest.source['distinct_words']:,} different "
        f"words of train, and {' '.join(SPECIALS)}"
    )
    yield from _oddities(manifest.source)


def _oddities(source: dict[str, Any]) -> Iterator[str]:
    """Say what was met in the text and how it was taken; stores of earlier versions know less about it."""
    labels = source.get("labels")
    if labels:
        told = [f"{value!r} is {label}" for value, label in sorted(labels.items(), key=lambda item: (item[1], item[0]))]
        more = f" and {len(told) - MOST_LABELS:,} more" if len(told) > MOST_LABELS else ""
        yield f"labels: {', '.join(told[:MOST_LABELS])}{more}"
        if source["unlabelled_rows"]:
            first = source["first_unlabelled_row"]
            yield f"{source['unlabelled_rows']:,} rows have no label, the first is {first}; theirs is unknown (-1)"
    if source["latin1_lines"]:
        yield f"{source['latin1_lines']:,} lines are not UTF-8 and were read as Latin-1 (Windows-1252)"
    if source.get("nul_characters"):
        yield f"{source['nul_characters']:,} NUL characters or byte-order marks within the text were read as blanks"
    if source.get("html_breaks"):
        yield f"{source['html_breaks']:,} lines hold <br />, which stays in the words; --sentences marks cuts there"
