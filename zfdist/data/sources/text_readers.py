"""Where text comes from: plain files, JSON lines, trees of reviews and zip archives of them, a line at a time."""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from zfdist.data.kinds import NO_LABEL
from zfdist.data.sources.convert import named
from zfdist.data.sources.inputs import SourceError
from zfdist.data.sources.words import lines_of

POLARITY = {"neg": 0, "negative": 0, "pos": 1, "positive": 1}
REVIEW_FOLDERS = ("pos", "neg", "unsup")
PASSED_OVER = ("README", "LICENSE", "LICENCE", "COPYING", "COPYRIGHT")
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a damaged or locked file or archive raises when it is read."""


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a JSON line; "" for none."""

    text: str = "text"
    review: str = ""
    label: str = ""


class Line(NamedTuple):
    """A line of text: where it stands, the review that it is of (None: unknown), its label."""

    name: str
    review: str | None
    label: int
    text: str
    is_latin1: bool


class File(NamedTuple):
    """A file of text, perhaps in an archive, and how its lines are meant."""

    name: str
    path: Path
    member: str | None
    form: str
    """"review": the file is one review; "sentences": each line stands alone; "json": each line is an object."""
    label: int


def find(sources: tuple[Path, ...]) -> list[File]:
    """List the files of text in the sources, in the order of the sources and their names (bytewise).

    Of a folder or an archive: .txt (a review each; where there are folders pos and neg, only those in them or in
    unsup), .pos and .neg and .tok.* (a sentence a line), .jsonl, .ndjson and .json (an object a line) and, in a
    folder, .zip. A file that is named itself is taken as lines of sentences whatever it is called. Raises SourceError
    if there is none, or an archive cannot be read.
    """
    if not sources:
        raise SourceError("--source names no file or folder")
    files: list[File] = []
    for source in sources:
        if source.is_dir():
            names = sorted((p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()), key=str.encode)
            archives = [name for name in names if name.lower().endswith(".zip")]
            found = _of_tree([(name, source / name, None) for name in names if name not in archives], "")
            for name in archives:
                found += _of_archive(source / name, f"{name}/")
        elif source.suffix.lower() == ".zip":
            found = _of_archive(source, f"{source.name}/")
        elif source.is_file():
            form = _form(source.name) or "sentences"
            lone = "sentences" if form == "review" else form
            found = [File(source.name, source, None, lone, _label(PurePosixPath(source.name)))]
        else:
            raise SourceError(f"--source {source}: no such file or folder")
        if not found:
            raise SourceError(f"--source {source}: no .txt, .pos, .neg, .tok.*, .jsonl or .zip file in it")
        files += found
    twice = [name for name, count in _counts(files).items() if count > 1]
    if twice:
        raise SourceError(f"two of the sources have a file {twice[0]!r}; give one of them, or rename it")
    return files


def _counts(files: list[File]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for file in files:
        counts[file.name] = counts.get(file.name, 0) + 1
    return counts


def _of_archive(path: Path, prefix: str) -> list[File]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((item.filename for item in archive.infolist() if not item.is_dir()), key=str.encode)
    except UNREADABLE as error:
        raise SourceError(f"{path}: not readable as a zip archive ({error})") from None
    return _of_tree([(name, path, name) for name in members], prefix)


def _of_tree(items: list[tuple[str, Path, str | None]], prefix: str) -> list[File]:
    """Keep what is text among the files of a folder or an archive."""
    found = []
    for name, path, member in items:
        place = PurePosixPath(name)
        is_hidden = any(part[0] == "." or part == "__MACOSX" for part in place.parts)
        form = _form(place.name)
        if form is not None and not is_hidden:
            found.append(File(prefix + name, path, member, form, _label(place)))
    if any(file.form == "review" and file.label != NO_LABEL for file in found):
        found = [f for f in found if f.form != "review" or PurePosixPath(f.name).parent.name in REVIEW_FOLDERS]
    return found


def _form(name: str) -> str | None:
    """Tell by its name how the lines of a file are meant; None if it is no text."""
    lower = name.lower()
    if name.upper().startswith(PASSED_OVER):
        return None
    if lower.endswith((".jsonl", ".ndjson", ".json")):
        return "json"
    if lower.endswith((".pos", ".neg")) or ".tok." in lower:
        return "sentences"
    return "review" if lower.endswith(".txt") else None


def _label(place: PurePosixPath) -> int:
    """Return the polarity that the suffix or the folder of a file tells."""
    return POLARITY.get(place.suffix[1:].lower(), POLARITY.get(place.parent.name.lower(), NO_LABEL))


def lines(files: Iterable[File], fields: Fields, bad: dict[str, str], most_bad: int) -> Iterator[Line]:
    """Yield the lines of files that are not empty; puts lines and files that cannot be read into `bad`.

    Raises SourceError when there are more of them than `most_bad`.
    """
    for path, group in groupby(files, key=lambda file: file.path):
        some = list(group)
        try:
            # The directory of an archive is long: read once, not for each of its files.
            with zipfile.ZipFile(path) if some[0].member else nullcontext() as archive:
                for file in some:
                    yield from _lines(file, archive, fields, bad, most_bad)
        except UNREADABLE as error:
            bad[path.name] = f"unreadable ({error})"


def _lines(
    file: File, archive: zipfile.ZipFile | None, fields: Fields, bad: dict[str, str], most_bad: int
) -> Iterator[Line]:
    try:
        with archive.open(file.member) if archive and file.member else file.path.open("rb") as content:
            for number, text, is_latin1 in lines_of(content):
                name = f"{file.name}:{number}"
                if not text.strip():
                    continue
                if file.form == "json":
                    yield from _json_lines(name, text, is_latin1, fields, bad)
                    if len(bad) > most_bad:
                        raise SourceError(f"{len(bad)} lines cannot be used, reading is given up:\n{named(bad)}")
                else:
                    yield Line(name, file.name if file.form == "review" else None, file.label, text, is_latin1)
    except UNREADABLE as error:
        bad[file.name] = f"unreadable ({error})"


def _json_lines(name: str, text: str, is_latin1: bool, fields: Fields, bad: dict[str, str]) -> Iterator[Line]:
    """Yield the lines of the text of a JSON object."""
    try:
        if is_latin1:
            raise ValueError("not UTF-8")
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ValueError("not a JSON object; there must be one on each line")
        if not isinstance(tree.get(fields.text), str):
            raise ValueError(f"no text in field {fields.text!r} (--text-field); it has {', '.join(sorted(tree))}")
        review = None
        if fields.review:
            if not isinstance(tree.get(fields.review), str | int):
                raise ValueError(f"no id in field {fields.review!r} (--review-field)")
            review = str(tree[fields.review])
        label = _json_label(tree.get(fields.label)) if fields.label else NO_LABEL
    except (ValueError, RecursionError) as error:
        bad[name] = str(error)
        return
    # A lone surrogate is legal in JSON and not in UTF-8.
    clean = tree[fields.text].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    parts = [part for part in clean.split("\n") if part.strip()]
    for number, part in enumerate(parts, start=1):
        yield Line(name if len(parts) == 1 else f"{name}:{number}", review, label, part, False)


def _json_label(value: Any) -> int:
    """Return the label that a JSON value means: a whole number >= 0, true, false, "pos" or "neg"; nothing: unknown."""
    if value is None:
        return NO_LABEL
    if isinstance(value, int) and 0 <= value < 1 << 31:
        return int(value)
    if isinstance(value, str) and value.lower() in POLARITY:
        return POLARITY[value.lower()]
    raise ValueError(f"label {value!r} is neither a whole number >= 0, pos, neg nor null (--label-field)")
