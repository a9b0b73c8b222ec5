"""Where text comes from: plain, packed and archived files of lines, reviews and rows; read a line at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from zfdist.data.kinds import NO_LABEL
from zfdist.data.sources import packed, rows
from zfdist.data.sources.convert import named
from zfdist.data.sources.decoding import NotText, Oddities, TextLine, encoding_of, lines_of
from zfdist.data.sources.inputs import SourceError, kind_of_name, remarks, walk
from zfdist.data.sources.packed import UNREADABLE, Member
from zfdist.data.sources.rows import POLARITY, Fields, Labels, Row

REVIEW_FOLDERS = ("pos", "neg", "unsup")
PASSED_OVER = ("README", "LICENSE", "LICENCE", "COPYING", "COPYRIGHT")
TABLES = (".csv", ".tsv", ".tab")
_SUFFIXES = ".txt, .pos, .neg, .tok.*, .jsonl, .csv, .tsv, .parquet file or archive of such"


class Line(NamedTuple):
    """A line of text: where it stands, the review that it is of (None: unknown), its label."""

    name: str
    review: str | None
    label: int
    text: str


class File(NamedTuple):
    """A file of text, perhaps in an archive, and how its lines are meant."""

    name: str
    path: Path
    member: str
    """Its path in the archive; "" if it is none."""
    form: str
    """"review": the file is one review; "sentences": each line stands alone; "json": each line is an object; "table",
    "parquet": each row has named cells."""
    label: int

    @property
    def place(self) -> PurePosixPath:
        """Its path below the source, or in the archive."""
        return PurePosixPath(self.member or self.name)


@dataclass
class Notes:
    """What was met in the sources beside lines of text."""

    most_bad: int
    """Lines and files that cannot be used after which reading is given up."""
    bad: dict[str, str] = field(default_factory=dict)
    links: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    oddities: Oddities = field(default_factory=Oddities)
    labels: Labels = field(default_factory=Labels)

    def refuse(self, name: str, reason: str) -> None:
        """Note a line or file that cannot be used; raises SourceError if there are too many."""
        self.bad[name] = reason
        if len(self.bad) > self.most_bad:
            raise SourceError(f"{len(self.bad)} lines cannot be used, reading is given up:\n{named(self.bad)}")

    def remarks(self) -> tuple[str, ...]:
        """Say which links were followed and what was left out."""
        return remarks(self.links, self.left_out)


def find(sources: tuple[Path, ...], notes: Notes) -> list[File]:
    """List the files of text in the sources, in the order of the sources and their names (bytewise).

    Of a folder or an archive: .txt (a review each; where there are folders pos and neg, only those in them or in
    unsup), .pos and .neg and .tok.* (a sentence a line), .jsonl, .ndjson and .json (an object a line), .csv and .tsv
    (a table with a header), .parquet; each may be packed; and the archives in a folder, last. A file that is named
    itself, or lies alone in a source, is taken as lines of sentences whatever it is called, but for tables and JSON.
    Raises SourceError if there is none, or a text is there packed and unpacked.
    """
    if not sources:
        raise SourceError("--source names no file or folder")
    files: list[File] = []
    for source in sources:
        if source.is_dir():
            found = _of_folder(source, notes)
        elif source.is_file():
            found = _of_file(source, notes)
        else:
            raise SourceError(f"--source {source}: no such file or folder")
        if not found and not notes.bad:
            raise SourceError("; ".join([f"--source {source}: no {_SUFFIXES} in it", *remarks(0, notes.left_out)]))
        files += found
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise SourceError(f"two of the sources have a file {twice[0]!r}; give one of them, or rename it")
    return files


def _of_folder(source: Path, notes: Notes) -> list[File]:
    tree = walk(source)
    notes.links += tree.links
    notes.left_out += tree.left_out
    plain: list[File] = []
    archived: list[File] = []
    for name, path in tree.files.items():
        found = _listed(path, name, notes)
        if any(file.member for file in found):
            archived += _reviews_only(found, notes)
        else:
            plain += found
    kept = _reviews_only(plain, notes)
    _check_packed_twice(source, kept, archived)
    return _alone_is_sentences(kept + archived)


def _of_file(source: Path, notes: Notes) -> list[File]:
    return _alone_is_sentences(_reviews_only(_listed(source, source.name, notes, is_named=True), notes))


def _alone_is_sentences(found: list[File]) -> list[File]:
    """Take the one text there is as lines of sentences: a single review could not be split."""
    return [found[0]._replace(form="sentences")] if len(found) == 1 and found[0].form == "review" else found


def _listed(path: Path, name: str, notes: Notes, is_named: bool = False) -> list[File]:
    """List the text in a file, which may be an archive; `is_named`: by the user, so that it must be text."""
    found: list[File] = []
    try:
        name.encode()
        for member in packed.members(path):
            place = PurePosixPath(member.name or name)
            form = _form(packed.stem(place.name))
            full = f"{name}/{member.name}" if member.name else name
            must = is_named and not member.name
            if _is_hidden(PurePosixPath(member.name)):
                notes.left_out["hidden"] += 1
            elif member.problem and (must or form or member.is_archive):
                notes.refuse(full, member.problem)
            elif form is None and not must:
                is_known = packed.stem(place.name).upper().startswith(PASSED_OVER)
                notes.left_out["README or licence" if is_known else kind_of_name(packed.stem(place.name))] += 1
            elif not member.head and not must:
                notes.left_out["empty"] += 1
            elif place.suffix.lower() in packed.ARCHIVE_SUFFIXES:
                notes.refuse(full, f"not readable as a {place.suffix[1:].lower()} archive (its first bytes are not)")
            else:
                is_parquet = member.head.startswith(b"PAR1") and not member.name
                form = "parquet" if is_parquet else form or "sentences"
                found.append(File(full, path, member.name, form, _label(place)))
    except UnicodeEncodeError:
        notes.refuse(ascii(name), "its name is not valid UTF-8; rename it")
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            notes.refuse(name, f"unreadable ({error.strerror})")
        else:
            kind = "zip" if name.lower().endswith(".zip") else "packed"
            notes.refuse(name, f"not readable as a {kind} archive ({error})")
    return found


def _reviews_only(files: list[File], notes: Notes) -> list[File]:
    """Keep of the reviews those in folders for them, if there are such folders."""
    if not any(file.form == "review" and file.label != NO_LABEL for file in files):
        return files
    kept = [file for file in files if file.form != "review" or file.place.parent.name in REVIEW_FOLDERS]
    if len(kept) < len(files):
        notes.left_out["of .txt outside of folders pos, neg and unsup"] += len(files) - len(kept)
    return kept


def _check_packed_twice(source: Path, plain: list[File], archived: list[File]) -> None:
    """Raise SourceError if a text lies in the folder both packed and unpacked: it would count twice."""
    names = {file.name for file in plain}
    for file in [*plain, *archived]:
        folder = PurePosixPath(file.path.relative_to(source).as_posix())
        bare = folder.with_name(packed.stem(folder.name))
        unpacked = [folder.parent / file.member, bare.with_suffix("") / file.member] if file.member else [bare]
        for place in unpacked:
            if place.as_posix() in names - {file.name}:
                raise SourceError(
                    f"--source {source}: holds the text of {place.as_posix()!r} twice, the second time in "
                    f"{folder.as_posix()!r}; take one of them out of the folder"
                )


def _is_hidden(place: PurePosixPath) -> bool:
    return any((part[0] == "." and part != "..") or part == "__MACOSX" for part in place.parts)


def _form(name: str) -> str | None:
    """Tell by its name how the lines of a file are meant; None if it is no text."""
    lower = name.lower()
    if name.upper().startswith(PASSED_OVER):
        return None
    if lower.endswith((".jsonl", ".ndjson", ".json")):
        return "json"
    if lower.endswith(TABLES):
        return "table"
    if lower.endswith(".parquet"):
        return "parquet"
    if lower.endswith((".pos", ".neg")) or ".tok." in lower:
        return "sentences"
    return "review" if lower.endswith(".txt") else None


def _label(place: PurePosixPath) -> int:
    """Return the polarity that the suffix or the folder of a file tells."""
    suffix = PurePosixPath(packed.stem(place.name)).suffix[1:].lower()
    return POLARITY.get(suffix, POLARITY.get(place.parent.name.lower(), NO_LABEL))


def lines(files: Iterable[File], fields: Fields, encoding: str, notes: Notes) -> Iterator[Line]:
    """Yield the lines of files that are not empty; notes what cannot be read.

    Raises SourceError when there is too much of that, or if a table lacks a column that is wanted.
    """
    for path, group in groupby(files, key=lambda file: file.path):
        wanted = {file.member: file for file in group}
        try:
            for member in packed.members(path):
                if (file := wanted.get(member.name)) and not member.problem:
                    yield from _lines(file, member, fields, encoding, notes)
        except UNREADABLE as error:
            first = next(iter(wanted.values()))
            notes.refuse(first.name.removesuffix(first.member).rstrip("/"), f"unreadable ({error})")


def _lines(file: File, member: Member, fields: Fields, encoding: str, notes: Notes) -> Iterator[Line]:
    done = ""
    try:
        if file.form == "parquet":
            yield from _of_rows(file, rows.of_parquet(file.path, file.name, fields), fields, notes)
            return
        known = encoding_of(member.head, encoding)
        head = member.head.decode(known, "replace").replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff\n")
        content = lines_of(member.content, known, notes.oddities)
        if file.form == "table":
            yield from _of_rows(file, rows.of_table(file.name, head, content, fields), fields, notes)
        elif file.form == "json":
            if head.lstrip()[:1] == "[":
                raise NotText("an array of JSON; there must be an object on each line (jq -c '.[]' FILE > FILE.jsonl)")
            yield from _of_rows(file, rows.of_json(content), fields, notes)
        elif rows.is_json(head.split("\n", 1)[0]):
            raise NotText("holds lines of JSON; give it a name that ends in .jsonl (or .jsonl.gz and the like)")
        else:
            for line in content:
                done = f" after line {line.number}"
                yield from _plain_line(file, line, notes)
    except NotText as error:
        notes.refuse(file.name, str(error))
    except (*UNREADABLE, ValueError) as error:  # ValueError: a damaged Parquet file
        notes.refuse(file.name, f"unreadable{done} ({error})")


def _plain_line(file: File, line: TextLine, notes: Notes) -> Iterator[Line]:
    name = f"{file.name}:{line.number}"
    if line.problem:
        notes.refuse(name, line.problem)
    elif line.text.strip():
        yield Line(name, file.name if file.form == "review" else None, file.label, line.text)


def _of_rows(file: File, found: Iterable[Row], fields: Fields, notes: Notes) -> Iterator[Line]:
    """Yield the lines of the text of each row."""
    for row in found:
        name = f"{file.name}:{row.number}"
        try:
            if row.problem:
                raise ValueError(row.problem)
            review, label, texts = rows.parts(row, name, fields, notes.labels)
        except ValueError as error:
            notes.refuse(name, str(error))
            continue
        for number, text in enumerate(texts, start=1):
            full = name if len(texts) == 1 else f"{name}:{number}"
            yield Line(full, review, label, notes.oddities.without_nul(text))
