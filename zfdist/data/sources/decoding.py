"""From bytes to lines of text: which encoding, where lines end, and what is no text at all."""

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from zfdist.data.sources.inputs import SourceError

MOST_CHARACTERS = 1 << 25
"""Of a line; what is longer is no text."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PICKLE = "a pickle of Python, which can run programs; write its text to a .jsonl file"
_FORMATS = (
    (b"%PDF-", "a PDF document; save it as text"),
    (b"{\\rtf", "an RTF document; save it as text"),
    (b"\xd0\xcf\x11\xe0", "an Office document; save it as text"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"), _PICKLE),
    (b"PAR1\x15", "a Parquet file in an archive or packed; unpack it"),
    (b"ARROW1\0\0", "an Arrow file; write its text to a .jsonl or .parquet file"),
    (b"\x89HDF", "an HDF5 file; write its text to a .jsonl file"),
    (b"\x93NUMPY", "an array of NumPy; write its text to a .jsonl file"),
    (b"SQLite format 3\0", "a database of SQLite; export its table as .csv"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF87a", b"GIF89a"), "an image"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the data; run git lfs pull"),
    (b"<?xml", "XML; write its text to a .txt or .jsonl file"),
    ((b"<!doctype html", b"<html"), "a page of HTML, perhaps of a failed download; save it as text"),
)
"""First bytes of what is no text, and what to do about it."""
_BLANKS = bytes(range(9, 14)) + b"\x1a\x1b\x1c\x1d\x1e\x1f "
_CONTROLS = bytes(i for i in range(1, 32) if i not in _BLANKS)
_LOW = bytes(range(128))
_NEITHER = "neither UTF-8 nor Latin-1 text; name its encoding by --encoding, e.g. cp1251 or shift_jis"
_WINDOWS_1252 = {byte: bytes((byte,)).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0xA0)}
"""Latin-1 as it is written in fact: marks of punctuation in place of most control characters."""
_NO_WORDS = re.compile("[\0\ufeff]")
"""What damage and joining of files leave in text: NUL, and byte-order marks that are not at the start."""
_ESCAPED = re.compile("[\udc80-\udcff]+")


class NotText(ValueError):
    """Bytes that are not read as text; the message says what they are, or what to do."""


class TextLine(NamedTuple):
    """A line without its end."""

    number: int
    """Counted from 1."""
    text: str
    is_latin1: bool = False
    """It is not UTF-8."""
    problem: str = ""
    """Why it cannot be read."""


@dataclass
class Oddities:
    """What was met and is not handed on as it stands."""

    latin1_lines: int = 0
    nul_characters: int = 0
    html_breaks: int = 0
    """Lines with a <br /> that is kept as words."""

    def without_nul(self, text: str) -> str:
        """Put blanks for characters that are part of no word, and count them."""
        clean, found = _NO_WORDS.subn(" ", text)
        self.nul_characters += found
        return clean


def check_encoding(name: str) -> None:
    """Raise SourceError unless `name` is an encoding of text that Python knows."""
    try:
        is_text = isinstance("a\n".encode(name), bytes)
    except (LookupError, UnicodeError):
        is_text = False
    if not is_text:
        raise SourceError(f"--encoding {name}: not known; it must be a name such as utf-16-le, cp1251 or shift_jis")


def encoding_of(head: bytes, wanted: str) -> str:
    """Return the encoding of a file that begins with `head`: that of its mark, else the one wanted, else UTF-8.

    Raises NotText if it is no text.
    """
    start = head[:32].lower() if head[:1] == b"<" else head
    for first, what in _FORMATS:
        if start.startswith(first):
            raise NotText(what)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if wanted:
        return wanted
    _check_bytes(head)
    return "utf-8"


def _check_bytes(head: bytes) -> None:
    """Raise NotText if a file without mark that begins with `head` is neither UTF-8 nor Latin-1, or not likely."""
    nuls = head.count(0)
    if nuls:
        shares = [head[place::4].count(0) / max(1, len(head[place::4])) for place in range(4)]
        for encoding, full in (
            ("utf-16-le", (1, 3)),
            ("utf-16-be", (0, 2)),
            ("utf-32-le", (1, 2, 3)),
            ("utf-32-be", (0, 1, 2)),
        ):
            if all((share > 0.4) if place in full else (share < 0.2) for place, share in enumerate(shares)):
                raise NotText(f"seems to be {encoding} without a mark; if it is, give --encoding {encoding}")
        if 2 * nuls > len(head) and nuls > 1:
            raise NotText("more NUL bytes than others: torn, or no text")
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls > 8 and 50 * controls > len(head) - nuls:
        raise NotText("binary, not text; if it is text, name its encoding by --encoding")
    lines = head.splitlines()[: -1 if len(head) > 1 << 15 else None]  # the last one may be cut
    foreign = [line for line in lines if not _is_utf8(line)]
    if 2 * len(foreign) > len(lines) and not _is_western(b"".join(foreign)):
        raise NotText(_NEITHER)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_western(raw: bytes) -> bool:
    """Tell whether bytes can be Latin-1 prose: letters beyond ASCII are few there, and control characters none."""
    high = len(raw.translate(None, _LOW))
    controls = len(raw) - len(raw.translate(None, _CONTROLS))
    return controls <= 8 and (high < 16 or 10 * high < 3 * len(raw))


def lines_of(content: IO[bytes], encoding: str, oddities: Oddities) -> Iterator[TextLine]:
    """Decode lines, which end at LF, CR LF or CR; those that are not UTF-8 as Latin-1 (Windows-1252).

    Lines that can be neither have a problem. Raises NotText where the rest of the content cannot be read.
    """
    is_utf8 = encoding in ("utf-8", "utf-8-sig")
    errors = "surrogateescape" if is_utf8 else "strict"
    reader = io.TextIOWrapper(content, encoding, errors, newline=None)
    number = 0
    try:
        while text := reader.readline(MOST_CHARACTERS):
            number += 1
            if len(text) == MOST_CHARACTERS and text[-1] != "\n":
                raise NotText(f"line {number} is longer than {MOST_CHARACTERS:,} characters: no text")
            text = text.removesuffix("\n")
            is_latin1 = is_utf8 and not text.isascii() and _ESCAPED.search(text) is not None
            if is_latin1:
                raw = text.encode("utf-8", "surrogateescape")
                if not _is_western(raw):
                    yield TextLine(number, "", problem=_NEITHER)
                    continue
                text = raw.decode("latin-1").translate(_WINDOWS_1252)
                oddities.latin1_lines += 1
            yield TextLine(number, oddities.without_nul(text), is_latin1)
    except UnicodeError as error:
        raise NotText(f"not {encoding} after line {number} ({error}); --encoding names another one") from None
