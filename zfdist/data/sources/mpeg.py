"""MP3 as people have it: where its frames are, and which of them make a stream that a decoder reads whole.

An MP3 file has no header, only frames; many begin with one that holds no sound but counts the others (Xing, Info). A
decoder believes that count, or guesses the length from the first frames: of two files joined it reads one, and of a
file without the count perhaps a part. So the frames are counted here, and each stream gets a count that is right.
"""

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from zfdist.data.sources.containers import AudioError, id3_bytes

KBITS = {  # layer III, by MPEG version
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
START = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|ID3|TAG|APETAGEX")
"""What a frame or a tag begins with."""
COUNTING = re.compile(b"Xing|Info|VBRI")
"""What a frame holds that counts the others."""
CHAIN = 3
"""Frames that must follow each other where one is looked for: two bytes like its first two are anywhere."""
STRAY_BYTES = 4096
"""So many bytes between frames that are none are passed over without a word."""


class Frame(NamedTuple):
    """Where a frame is, and what its header says."""

    at: int
    bytes: int
    rate: int
    channels: int
    samples: int


@dataclass(frozen=True)
class Stream:
    """Frames of one rate and number of channels, as an MP3 file that counts them."""

    content: bytes
    frames: int
    samples: int
    """Of its frames; a decoder leaves out those that the encoder says it put before and after the sound."""


class _Run(NamedTuple):
    """Frames of one kind, and the one before them that counts them, if there is one."""

    counting: Frame | None
    told: int
    frames: list[Frame]


def streams(content: bytes) -> tuple[list[Stream], str]:
    """Return the streams in an MP3 file in their order, and what is to be said of it, or "".

    Raises AudioError if it has no frames, or is cut short.
    """
    frames, stray, cut = _frames(content)
    if not frames:
        raise AudioError("no MPEG layer III frames in it")
    runs = _runs(content, frames)
    for i, run in enumerate(runs):
        following = runs[i + 1 :]
        own = next((j for j, other in enumerate(following) if other.counting), len(following))
        there = len(run.frames) + sum(len(other.frames) for other in following[:own])
        if run.told > there + 1:  # some count the counting frame as well
            raise AudioError(
                f"cut short: {there:,} of {run.told:,} MPEG frames are there"
                if cut
                else f"its header counts {run.told:,} MPEG frames, {there:,} are there: cut short, or cut by a program "
                "that left the header as it was; if it is whole, write it anew, e.g. with ffmpeg -i FILE FILE.wav"
            )
    if cut:
        raise AudioError(f"cut short: the last of {len(frames) + 1:,} MPEG frames is not all there")
    made = [_stream(content, run) for run in runs if run.frames]
    if not made:
        raise AudioError("holds no samples")
    said = [f"{len(made)} MP3 streams in one, read one after the other"] if len(made) > 1 else []
    if stray > STRAY_BYTES:
        said.append(f"{stray:,} bytes between its frames are no MPEG audio and were passed over")
    return made, "; ".join(said)


def _frames(content: bytes) -> tuple[list[Frame], int, bool]:
    """Return the frames, how many bytes are neither frames nor tags nor zeros, and if the last frame is cut off."""
    frames: list[Frame] = []
    at = stray = 0
    while at < len(content):
        frame = _frame(content, at)
        if frame is not None and at + frame.bytes > len(content):
            is_cut = bool(frames) and frame[2:] == frames[-1][2:]
            return frames, stray, is_cut
        if frame is not None and (_is_next(frames, at) or _is_chain(content, frame)):
            frames.append(frame)
            at += frame.bytes
        elif tag := _tag_bytes(content, at):
            at += tag
        else:
            following = START.search(content, at + 1)
            ends = following.start() if following else len(content)
            stray += len(content[at:ends].strip(b"\0")) if frames else 0
            at = ends
    return frames, stray, False


def _is_next(frames: list[Frame], at: int) -> bool:
    return bool(frames) and frames[-1].at + frames[-1].bytes == at


def _frame(content: bytes, at: int) -> Frame | None:
    """Read a frame's header; None if there is none."""
    if len(content) < at + 4 or content[at] != 0xFF or content[at + 1] & 0xE6 != 0xE2:
        return None
    version, bits, mode = content[at + 1] >> 3 & 3, content[at + 2], content[at + 3] >> 6
    if version == 1 or not 0 < bits >> 4 < 15 or bits >> 2 & 3 == 3:
        return None
    rate = RATES[version][bits >> 2 & 3]
    kbits, samples = KBITS[1 if version == 3 else 2][bits >> 4], 1152 if version == 3 else 576
    return Frame(at, samples // 8 * kbits * 1000 // rate + (bits >> 1 & 1), rate, 1 if mode == 3 else 2, samples)


def _is_chain(content: bytes, frame: Frame) -> bool:
    """Tell if a frame is followed by others like it, or by the end."""
    at = frame.at
    for _ in range(CHAIN):
        found = _frame(content, at)
        if found is None or found.rate != frame.rate:
            return False
        at += found.bytes
        if at >= len(content) or _tag_bytes(content, at):
            return True
    return True


def _tag_bytes(content: bytes, at: int) -> int:
    """Return the length of the ID3 or APE tag that begins at `at`, or 0."""
    if content.startswith(b"ID3", at) and len(content) >= at + 10:
        return id3_bytes(content[at : at + 10])
    if content.startswith(b"TAG", at):
        return 128
    if content.startswith(b"APETAGEX", at) and len(content) >= at + 32:
        size, _, flags = struct.unpack_from("<III", content, at + 12)
        return 32 + (size if flags & 1 << 29 else 0)
    return 0


def _count_of(content: bytes, frame: Frame) -> int | None:
    """Return how many frames a frame without sound counts (0: it does not say), or None if it is one with sound."""
    # After the header, perhaps a checksum, and the side information, which has 9 to 32 bytes.
    found = COUNTING.search(content, frame.at + 13, min(frame.at + 46, frame.at + frame.bytes))
    if found is None or len(content) < found.start() + 18:
        return None
    if found[0] == b"VBRI":
        return int(struct.unpack_from(">I", content, found.start() + 14)[0])
    flags, count = struct.unpack_from(">II", content, found.end())
    return int(count) if flags & 1 else 0


def _runs(content: bytes, frames: list[Frame]) -> list[_Run]:
    """Part the frames where one counts those that follow, and where the rate or the number of channels changes."""
    runs: list[_Run] = []
    for frame in frames:
        told = _count_of(content, frame)
        if told is not None:
            runs.append(_Run(frame, told, []))
        elif runs and (not runs[-1].frames or frame[2:] == runs[-1].frames[-1][2:]):
            runs[-1].frames.append(frame)
        else:
            runs.append(_Run(None, 0, [frame]))
    return runs


def _stream(content: bytes, run: _Run) -> Stream:
    """Return the frames of a run behind one that counts them: its own if that is right, else a new one."""
    first, count = run.frames[0], len(run.frames)
    sound = b"".join(content[frame.at : frame.at + frame.bytes] for frame in run.frames)
    if run.counting is not None and run.told in (count, count + 1) and run.counting[2:] == first[2:]:
        counting = content[run.counting.at : run.counting.at + run.counting.bytes]
    else:
        counting = _counting(sound[:4], count, len(sound))
    return Stream(counting + sound, count, count * first.samples)


def _counting(header: bytes, frames: int, size: int) -> bytes:
    """Return a frame without sound that counts others which begin with `header`."""
    # 0xFB: version and layer kept, no checksum. A middle bit rate, so that there is room; no padding.
    plain = bytes([0xFF, header[1] | 1, 9 << 4 | header[2] & 0x0C, header[3]])
    frame = _frame(plain, 0)
    assert frame is not None
    side = (17 if frame.channels == 1 else 32) if frame.samples == 1152 else (9 if frame.channels == 1 else 17)
    return (plain + bytes(side) + b"Xing" + struct.pack(">III", 3, frames, size + frame.bytes)).ljust(
        frame.bytes, b"\0"
    )
