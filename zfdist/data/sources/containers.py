"""What the first bytes and the header of a sound file say, and whether the file can be what they say.

libsndfile takes a header at its word where it says too little, and reads what there is where it says too much, without
an error in either case; so this looks first. MP3 has no header of the whole file: see mpeg.py.
"""

import io
import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from zfdist.errors import ZfdistError

PLACEHOLDER_BYTES = 0x7FFF_0000
"""From here on a size in a WAV header is what a program writes that does not know it, as are 0 and 0xFFFFFFFF.

Seen are 0x7FFFF000 (sox), 0x7FFFFFFF and sizes just below, 0x80000000 (arecord), 0xFFFF1000, 0xFFFFFFFF (ffmpeg).
"""
STRAY_BYTES = 4096
"""After the sound so many bytes of no known meaning are passed over; more may be sound that the header leaves out."""
RATES = (1000, 768_000)
"""Sample rates that sound can have, in Hz."""
MOST_CHANNELS = 64
FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
OTHERS = {
    b"RIFX": "a big-endian WAV (RIFX)",
    b"riff": "a Wave64",
    b"FORM": "an AIFF",
    b"OggS": "an Ogg",
    b".snd": "a Sun audio",
    b"caff": "a CAF",
    b"#!AM": "an AMR",
    b"0&\xb2u": "a WMA",
    b"MAC ": "a Monkey's Audio",
    b"wvpk": "a WavPack",
}


class AudioError(ZfdistError):
    """A file that gives no sound; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Checked:
    """What is to be known of a file whose header can be true before it is decoded."""

    corrections: Mapping[int, bytes] = field(default_factory=dict)
    """What must stand in the header for libsndfile to read all, by offset."""
    is_streamed: bool = False
    """The header does not know the length: the sound goes to the end of the file."""


def head_of(path: Path) -> bytes:
    """Return the first 1,024 bytes or those after an ID3 tag if it stands before FLAC; raises AudioError."""
    try:
        with path.open("rb") as file:
            return head_in(file)
    except OSError as error:
        raise AudioError(f"unreadable: {error.strerror}") from None


def head_in(file: BinaryIO) -> bytes:
    """Return what `head_of` does, of an open file."""
    head = file.read(1024)
    if head[:3] == b"ID3" and len(head) >= 10:
        file.seek(id3_bytes(head))
        behind = file.read(1024)
        head = behind if behind[:4] == b"fLaC" else head
    return head


def id3_bytes(head: bytes) -> int:
    """Return the length of the ID3v2 tag that `head` begins with."""
    size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size + (10 if head[5] & 0x10 else 0)


def kind(head: bytes) -> str | None:
    """Name the format by the first bytes: "wav", "flac", "nist", "mp3" or None."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:7] == b"NIST_1A":
        return "nist"
    # An MPEG audio frame begins with 11 set bits; then version and layer, here layer III only.
    is_mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return "mp3" if head[:3] == b"ID3" or is_mpeg else None


def other_kind(head: bytes) -> str:
    """Say what a file is whose format is not read."""
    if head[4:8] == b"ftyp":
        found = "an MPEG-4 (M4A)"
    elif len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        found = "an AAC"
    else:
        found = OTHERS.get(head[:4], "")
    if found:
        return f"{found} file, which is not read; convert it, e.g. with ffmpeg -i FILE FILE.wav"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the sound; run git lfs pull"
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>"):
        return "a page of HTML, perhaps of a failed download"
    return "neither WAV, FLAC, NIST SPHERE nor MP3 by its first bytes"


def check(path: Path, kind: str) -> Checked:
    """Compare what the header of a file promises with the file; raises AudioError if they cannot both be true."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if kind == "nist":
            _check_sphere(file.read(1024), size)
        if kind == "wav":
            return _check_riff(file, size)
        if kind == "flac":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                streams = sum(1 for _ in FLAC_START.finditer(content))
            if streams > 1:
                raise AudioError(f"{streams} FLAC files in one, of which a decoder reads the first; cut them apart")
    return Checked()


def _check_riff(file: BinaryIO, size: int) -> Checked:
    """Walk over the chunks of a WAV file to its sound.

    RF64 (also called BW64) has the sizes of 64 bits in its first chunk.
    """
    magic, riff_bytes = struct.unpack("<4sI", file.read(12)[:8])
    corrections = {0: b"RF64"} if magic == b"BW64" else {}
    long_at, long_bytes = 0, 0
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        at = file.tell()
        if name == b"ds64" and magic != b"RIFF" and len(sizes := file.read(16)) == 16:
            long_at, long_bytes = at + 8, struct.unpack("<8xQ", sizes)[0]
        if name == b"fmt " and len(described := file.read(16)) == 16:
            _check_fmt(described)
        if name == b"data":
            is_long = length == 0xFFFFFFFF and long_at > 0
            promised = long_bytes if is_long else length
            there = size - at
            has_length = 0 < promised < 1 << 48 if is_long else not (_is_none(promised) or _is_none(riff_bytes))
            if promised > there and has_length:
                raise AudioError(f"cut short: {there:,} of {promised:,} bytes of sound are there")
            if promised > there or (not has_length and there and not _is_chunks(file, at + promised, size)):
                sound = _end_of_sound(file, at, size) - at
                if sound > 0xFFFFFFFE and not is_long:
                    raise AudioError("more than 4 GiB without a length; write it anew as RF64 or FLAC")
                right = struct.pack("<Q" if is_long else "<I", sound)
                return Checked({**corrections, (long_at if is_long else at - 4): right}, is_streamed=True)
            if not _is_chunks(file, at + promised, size):
                raise AudioError(
                    f"its header counts {promised:,} bytes of sound, {there - promised:,} more follow that are none "
                    "of its chunks: two files in one, or a header that was not brought up to date; write it anew"
                )
            return Checked(corrections)
        file.seek(at + length + length % 2)
    raise AudioError("no data chunk: cut short or damaged")


def _check_fmt(described: bytes) -> None:
    """Raise AudioError if a WAV file describes samples that there are not."""
    tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", described)
    check_format(rate, channels)
    sample_bytes, rest = divmod(frame_bytes, channels)
    is_plain = tag in (1, 3, 0xFFFE)  # integers, floats, and either with more said of them
    if is_plain and (not 8 <= bits <= 64 or (frame_bytes and (rest or sample_bytes not in (1, 2, 3, 4, 8)))):
        raise AudioError(f"{channels} samples of {bits} bits in {frame_bytes} bytes: its header is damaged")


def check_format(rate: int, channels: int) -> None:
    """Raise AudioError for a sample rate or a number of channels that no sound has."""
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"a sample rate of {rate:,} Hz, where sound has {RATES[0]:,} to {RATES[1]:,} Hz: its header is damaged"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(f"{channels:,} channels, where 1 to {MOST_CHANNELS} are read: its header is damaged")


def _is_none(length: int) -> bool:
    """Tell if a size stands for a length that was not known when it was written."""
    return length == 0 or length >= PLACEHOLDER_BYTES


def _is_chunks(file: BinaryIO, start: int, size: int) -> bool:
    """Tell if what follows the sound is chunks, but for a few bytes; with a byte between or, as some write it, none."""
    return any(_stray_bytes(file, at, size) <= STRAY_BYTES for at in (start, start + start % 2))


def _end_of_sound(file: BinaryIO, start: int, size: int) -> int:
    """Return where the sound of a stream ends: before a list of tags that ends with the file, or with the file."""
    first = max(start, size - (1 << 16))
    file.seek(first)
    tail = file.read()
    for found in re.finditer(b"LIST(.{4})(INFO|adtl)", tail, re.DOTALL):
        if found.end(1) + struct.unpack("<I", found[1])[0] in (len(tail), len(tail) - 1):
            return first + found.start()
    return size


def _stray_bytes(file: BinaryIO, at: int, size: int) -> int:
    """Return how many bytes from `at` on are neither chunks nor zeros."""
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if not (name.isascii() and name.decode().isprintable()) or name in (b"RIFF", b"RF64") or at + 8 > size - length:
            file.seek(at)
            while (block := file.read(1 << 20)) and not block.strip(b"\0"):
                at += len(block)
            break
        at += 8 + length + length % 2
    return max(0, size - at)


def _check_sphere(head: bytes, size: int) -> None:
    """Raise AudioError for a SPHERE file that is compressed, or has more or fewer bytes than its header promises."""
    lines = head.decode("latin-1").split("\n")
    fields = {line.split(" ", 2)[0]: line.split(" ", 2)[2] for line in lines if line.count(" ") >= 2 and " -" in line}
    if "shorten" in fields.get("sample_coding", ""):
        raise AudioError("compressed by shorten; unpack it first, e.g. with sph2pipe")
    try:
        header_bytes = int(lines[1])
        rate, channels = int(fields.get("sample_rate", "16000")), int(fields.get("channel_count", "1"))
        promised = int(fields["sample_count"]) * int(fields.get("sample_n_bytes", "2")) * channels
    except (KeyError, ValueError, IndexError):
        raise AudioError("SPHERE header without a valid sample_count") from None
    check_format(rate, channels)
    there = max(0, size - header_bytes)
    if promised > there:
        raise AudioError(f"cut short: {there:,} of {promised:,} bytes of sound are there")
    if 0 < promised < there - STRAY_BYTES:  # a count of 0 is that of a stream: all is read
        raise AudioError(
            f"its header counts {promised:,} bytes of sound, {there - promised:,} more follow; mend its sample_count"
        )


class Corrected(io.RawIOBase):
    """A file as it would be with other bytes at some places of its header."""

    def __init__(self, path: Path, corrections: Mapping[int, bytes]) -> None:
        self._file = path.open("rb")
        self._corrections = corrections

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be wound."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place as in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes, with the corrections in them; return how many there are."""
        at = self._file.tell()
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view)
        for offset, right in self._corrections.items():
            for i, byte in enumerate(right, start=offset - at):
                if 0 <= i < count:
                    view[i] = byte
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
