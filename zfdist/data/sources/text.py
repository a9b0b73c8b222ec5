"""Sentences to a store of word ids: which sentences, which split, which words are known; the same for the same text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from zfdist.data.kinds import TOKENS
from zfdist.data.manifest import SPLITS
from zfdist.data.output import Where
from zfdist.data.sources import text_readers
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
from zfdist.data.sources.decoding import check_encoding
from zfdist.data.sources.inputs import SourceError, content_sha256, split_of_key
from zfdist.data.sources.places import Source, licence_beside, mirrored
from zfdist.data.sources.rows import Fields
from zfdist.data.sources.text_readers import File, Notes
from zfdist.data.sources.words import MOST_WORDS, SENTENCES, TOKENIZERS, Vocabulary, sentences, tokenised
from zfdist.data.sources.workers import Report, Workers, here
from zfdist.data.store_writer import Recording

VERSION = 2
HOPELESS = 1000
"""Bad lines beyond those allowed after which it is not worth reading on."""


@dataclass(frozen=True)
class Text:
    """What to convert and how; all but `licence` and `max_bad` shape the data."""

    sources: tuple[Source, ...]
    tokenizer: str = "blanks"
    sentences: str = "lines"
    min_tokens: int = 1
    max_tokens: int = 15
    vocab: int = 16_000
    """Words that are known, without the special ones."""
    valid_percent: float = 5.0
    test_percent: float = 10.0
    fields: Fields = field(default_factory=Fields)
    encoding: str = ""
    """Of text without a mark; "": UTF-8, and Latin-1 where a line is not that."""
    licence: str = ""
    max_bad: int = 0

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        ranges = {
            "vocab": (1, MOST_WORDS),
            "min_tokens": (1, 1 << 20),
            "max_tokens": (1, 1 << 20),
            "max_bad": (0, 2**31),
        }
        for name, (low, high) in (ranges | {"valid_percent": (0, 100), "test_percent": (0, 100)}).items():
            if not low <= getattr(self, name) <= high:
                raise SourceError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {low} to {high}")
        if self.min_tokens > self.max_tokens:
            raise SourceError(f"--min-tokens {self.min_tokens}: must not exceed --max-tokens {self.max_tokens}")
        if self.valid_percent + self.test_percent >= 100:
            raise SourceError(
                f"--valid-percent {self.valid_percent:g} and --test-percent {self.test_percent:g} "
                "leave nothing to train on: their sum must be below 100"
            )
        if self.encoding:
            check_encoding(self.encoding)


class Sentence(NamedTuple):
    """A sentence that is kept: where it stands, its split, its label and its words."""

    name: str
    split: str
    label: int
    words: list[str]


@dataclass
class Census:
    """What a first reading of all text found."""

    sentences: Counter[str] = field(default_factory=Counter)
    """By split."""
    words: Counter[str] = field(default_factory=Counter)
    """Of the training split."""


def prepare(options: Text, out: Where, progress: Progress = silent, workers: Workers = here) -> Outcome:
    """Convert text to a store of sentences in folder or URI `out`.

    The text is read once to count words and once for each split, a line at a time; words and names of sentences are
    held in memory. Raises SourceError for unusable input, StoreError if `out` holds something else.
    """
    notes = Notes(options.max_bad + HOPELESS)
    files = _files(options, notes, progress)
    if len(notes.bad) > options.max_bad:
        raise SourceError(too_many_bad(notes.bad, options.max_bad))
    _check_fields(options.fields, files)
    source = _source(options, files)
    outcome = existing(out, source)
    if outcome is not None:
        return replace(outcome, remarks=notes.remarks())
    census = count(options, files, notes, progress)
    vocabulary = Vocabulary.of(census.words, options.vocab)

    def planned(split: str) -> PlannedShard:
        recordings = partial(_recordings, options, split, vocabulary, notes.bad)
        key = json_sha256([source, split, vocabulary.words])
        return PlannedShard(split, f"{split}-00000", key, census.sentences[split], recordings)

    outcome = convert(
        out,
        [planned(split) for split in SPLITS],
        source=source
        | {
            "distinct_words": len(census.words),
            "labels": notes.labels.seen,
            "unlabelled_rows": notes.labels.unlabelled,
            "first_unlabelled_row": notes.labels.first_unlabelled,
        }
        | vars(notes.oddities),
        licence=options.licence or licence_beside(options.sources[0]),
        total=census.sentences.total(),
        progress=progress,
        kind=TOKENS,
        max_bad=options.max_bad,
        words=vocabulary.words,
        workers=workers,
    )
    return replace(outcome, remarks=notes.remarks())


def _files(options: Text, notes: Notes, progress: Progress = silent) -> list[File]:
    """List the files of text, on whatever machine this is."""
    sources = tuple(mirrored(source, partial(progress, 0, 0)) for source in options.sources)
    return text_readers.find(sources, notes)


def _recordings(
    options: Text, split: str, vocabulary: Vocabulary, known_bad: dict[str, str], bad: dict[str, str], report: Report
) -> Iterator[Recording]:
    """Read the sentences of a split; what is bad was found when words were counted."""
    bad.update(known_bad)
    done = 0
    notes = Notes(options.max_bad + HOPELESS)
    for sentence in kept(options, _files(options, notes), notes):
        if sentence.split == split:
            yield Recording(sentence.name, vocabulary.ids(sentence.words), sentence.label)
            done += 1
            if done % 1000 == 0:
                report(done, sentence.name)


def _check_fields(fields: Fields, files: list[File]) -> None:
    """Raise SourceError if fields are named and nothing has any."""
    given = [f"--{name}-field {value}" for name, value in vars(fields).items() if value]
    if given and not any(file.form in ("json", "table", "parquet") for file in files):
        raise SourceError(f"{given[0]}: among the sources is no .jsonl, .csv, .tsv or .parquet file, only plain text")


def _source(options: Text, files: list[File]) -> dict[str, Any]:
    """Describe what the data are made from; equal descriptions give equal bytes."""
    hashes = {path: content_sha256(path) for path in dict.fromkeys(file.path for file in files)}
    return {
        "converter": "text",
        "version": VERSION,
        "tokenizer": TOKENIZERS[options.tokenizer],
        "sentences": SENTENCES[options.sentences],
        "tokens": [options.min_tokens, options.max_tokens],
        "vocab": options.vocab,
        "fields": vars(options.fields),
        "encoding": options.encoding,
        "split": {
            "rule": "sha256 of the review, or of the sentence where there is none",
            "valid_percent": options.valid_percent,
            "test_percent": options.test_percent,
        },
        "files": len(files),
        "inputs_sha256": json_sha256([[file.name, file.form, file.label, hashes[file.path]] for file in files]),
    }


def count(options: Text, files: list[File], notes: Notes, progress: Progress = silent) -> Census:
    """Read all text once; raises SourceError if it gives no vocabulary or a split stays empty."""
    census = Census()
    for sentence in kept(options, files, notes):
        census.sentences[sentence.split] += 1
        if sentence.split == "train":
            census.words.update(sentence.words)
        if census.sentences.total() % 1000 == 0:
            progress(0, 0, sentence.name)
    if len(notes.bad) > options.max_bad:
        raise SourceError(too_many_bad(notes.bad, options.max_bad, "lines"))
    fields = options.fields
    if fields.label and not notes.labels.seen:
        raise SourceError(f"--label-field {fields.label}: no row of the sources has a label of that name")
    empty = [split for split in SPLITS if not census.sentences[split]]
    if empty:
        reviews = sum(file.form == "review" for file in files)
        whole = f" (each of the {reviews} .txt files is a review, which stays whole)" if reviews else ""
        raise SourceError(
            f"split {empty[0]!r} would be empty: {census.sentences.total():,} sentences of {options.min_tokens} to "
            f"{options.max_tokens} tokens in {len(files)} files{whole}; change --min-tokens, --max-tokens, --sentences "
            "or the percentages, or give more text"
        )
    return census


def kept(options: Text, files: list[File], notes: Notes) -> Iterator[Sentence]:
    """Yield the sentences of a wanted length in the order of the text; notes what is odd or bad."""
    for line in text_readers.lines(files, options.fields, options.encoding, notes):
        notes.oddities.html_breaks += options.sentences == "lines" and "<br" in line.text
        parts = sentences(line.text, options.sentences)
        for number, part in enumerate(parts, start=1):
            words = tokenised(part, options.tokenizer)
            if options.min_tokens <= len(words) <= options.max_tokens:
                key = " ".join(words) if line.review is None else line.review
                split = split_of_key(key, options.valid_percent, options.test_percent)
                name = line.name if len(parts) == 1 else f"{line.name}:{number}"
                yield Sentence(name, split, line.label, words)
