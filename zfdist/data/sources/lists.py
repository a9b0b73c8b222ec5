"""List files: a path a line, as people write them on any system; and the splits that three of them make."""

import codecs
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from zfdist.data.manifest import SPLITS
from zfdist.data.sources.inputs import Input, SourceError
from zfdist.data.sources.places import Source, shown

MARKS = {  # the longest first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def lines_of_list(path: Path, flag: str) -> list[str]:
    """Return the lines of a list file without blanks around them: UTF-8, or what its byte-order mark says.

    Lines end with LF, CRLF or CR. Raises SourceError naming the flag if it is no such text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{flag} {path}: unreadable ({error.strerror})") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise SourceError(f"{flag} {path}: is no {encoding.removesuffix('-sig')} text; save it as UTF-8") from None
    if "\0" in text:
        raise SourceError(f"{flag} {path}: holds NUL characters; save it as UTF-8 text, a path a line")
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text)]


def listed_names(path: Path, flag: str) -> list[str]:
    """Return the lines of a list file, but for empty ones and those with #; raises SourceError naming the flag."""
    return [line for line in lines_of_list(path, flag) if line and not line.startswith("#")]


def resolved(line: str, source: Source, known: Mapping[str, Input]) -> str:
    """Return the name under `source` that a line means: as it stands, with backslashes, absolute, with ./ or ..

    In a store, absolute is a URI. A line that means none of the known names is returned as it is.
    """
    for spelling in (line, line.replace("\\", "/")):
        place = PurePosixPath(spelling)
        is_folder = isinstance(source, Path) and place.is_absolute()
        for root in (Path(source).absolute(), Path(source).resolve()) if is_folder else ():
            place = place.relative_to(root) if place.is_relative_to(root) else place
        parts: list[str] = []
        for part in place.parts:
            if part == ".." and parts:
                parts.pop()
            else:
                parts.append(part)
        for name in (spelling, "/".join(parts), spelling.removeprefix(f"{shown(source)}/")):
            if name in known:
                return name
    return line


def splits_by_lists(lists: Mapping[str, Path], source: Source, inputs: list[Input]) -> dict[str, list[Input]]:
    """Read the list files: a path to a file under the source on each line; see `listed_names` and `resolved`.

    Raises SourceError for names that are no audio file, or come twice.
    """
    known = {item.name: item for item in inputs}
    owner: dict[str, str] = {}
    for split, path in lists.items():
        names = [resolved(line, source, known) for line in listed_names(path, f"--list-{split}")]
        missing = [name for name in names if name not in known]
        if missing:
            raise SourceError(
                f"--list-{split} {path}: {len(missing)} of {len(names)} files are not audio files under "
                f"{shown(source)}, the first is {missing[0]!r}"
            )
        for name in names:
            if name in owner:
                raise SourceError(f"--list-{split} {path}: {name!r} is already in the list of {owner[name]}")
            owner[name] = split
    splits: dict[str, list[Input]] = {name: [] for name in SPLITS}
    for item in inputs:
        if item.name in owner:
            splits[owner[item.name]].append(item)
    return splits
