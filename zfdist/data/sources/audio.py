"""One audio file to mono int16 at a wanted rate: WAV, FLAC, NIST SPHERE and MP3, in blocks of bounded size.

libsndfile returns a short array from a file that was cut off, without an error; so what was read is compared with what
the file's own header promises.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

Floats = NDArray[np.float64]

BLOCK_FRAMES = 1 << 18
SUFFIXES = (".wav", ".flac", ".mp3", ".sph", ".nist")


class AudioError(ValueError):
    """A file that gives no sound; the message is the reason, without the file's name."""


def is_audio(path: Path) -> bool:
    """Tell by the first bytes, or failing that by the suffix, whether a file claims to be audio of a known kind."""
    return path.suffix.lower() in SUFFIXES or _kind(_head(path)) is not None


def estimated_samples(path: Path, rate: int) -> int:
    """Return about how many samples `read` will give, from the header alone; 0 if there is no telling."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return 0
    # Streams of unknown length claim the largest number there is.
    return info.frames * rate // info.samplerate if info.frames < 1 << 40 else 0


def read(path: Path, rate: int) -> NDArray[np.int16]:
    """Decode a file to int16 [samples] at `rate` Hz: channels averaged, resampled, rounded, saturated.

    16-bit mono at that rate comes through unchanged. Memory: the result twice, and a few blocks. Raises AudioError for
    a file that is empty, cut short, unreadable, of an unknown kind or not finite.
    """
    head = _head(path)
    if not head:
        raise AudioError("empty file")
    kind = _kind(head)
    if kind is None:
        raise AudioError("neither WAV, FLAC, NIST SPHERE nor MP3 by its first bytes")
    if kind == "nist":
        _check_sphere(head, path.stat().st_size)
    if kind == "wav":
        _check_riff(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            pcm = [_to_int16(block) for block in resampled(_mono_blocks(file), file.samplerate, rate)]
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioError(f"not decodable: {str(error).replace(str(path), 'file')}") from None
    samples = np.concatenate(pcm) if pcm else np.empty(0, np.int16)
    if not samples.size:
        raise AudioError("holds no samples")
    return samples


def resampled(blocks: Iterator[Floats], from_rate: int, to_rate: int) -> Iterator[Floats]:
    """Resample a signal given in blocks of any size, as `scipy.signal.resample_poly` (its own filter) does it whole.

    Each piece is filtered together with as many samples on both sides as the filter reaches, so no seam is left.
    """
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    if up == down:
        yield from blocks
        return
    reach = 10 * max(up, down)
    taps = firwin(2 * reach + 1, 1.0 / max(up, down), window=("kaiser", 5.0))
    # A multiple of `down` input samples is a whole number of output samples: pieces fit without a fraction.
    context = -(-(reach // up + 1) // down) * down
    skip = context * up // down
    pending = np.zeros(context)
    for block in blocks:
        pending = np.concatenate([pending, block])
        core = (pending.size - 2 * context) // down * down
        if core > 0:
            yield resample_poly(pending[: core + 2 * context], up, down, window=taps)[skip : skip + core * up // down]
            pending = pending[core:]
    rest = -(-(pending.size - context) * up // down)
    if rest:
        pending = np.concatenate([pending, np.zeros(context)])
        yield resample_poly(pending, up, down, window=taps)[skip : skip + rest]


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[Floats]:
    """Yield the mean of the channels in PCM units; raises AudioError if the file ends before its header says."""
    total = 0
    while True:
        block = file.read(BLOCK_FRAMES, dtype="float64", always_2d=True)
        if not len(block):
            break
        if not np.isfinite(block).all():
            raise AudioError("holds values that are not finite")
        total += len(block)
        yield block.mean(axis=1) * 32768.0
    if file.frames < 1 << 40 and total != file.frames:
        raise AudioError(f"cut short: {total:,} of {file.frames:,} frames are there")


def _to_int16(block: Floats) -> NDArray[np.int16]:
    return np.clip(np.rint(block), -32768, 32767).astype(np.int16)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise AudioError(f"unreadable: {error.strerror}") from None


def _kind(head: bytes) -> str | None:
    """Name the format by the first bytes."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:7] == b"NIST_1A":
        return "nist"
    # An MPEG audio frame begins with 11 set bits; then version and layer, here layer III only.
    is_mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return "mp3" if head[:3] == b"ID3" or is_mpeg else None


def _check_riff(path: Path) -> None:
    """Raise AudioError if the data chunk promises more bytes than the file has."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(12)[:4]
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                there = size - file.tell()
                # Streamed files do not know their length and say the largest there is; RF64 says it elsewhere.
                if magic == b"RIFF" and length != 0xFFFFFFFF and length > there:
                    raise AudioError(f"cut short: {there:,} of {length:,} bytes of sound are there")
                return
            file.seek(length + length % 2, os.SEEK_CUR)
    raise AudioError("cut short: no data chunk")


def _check_sphere(head: bytes, size: int) -> None:
    """Raise AudioError for a SPHERE file that is compressed or has fewer bytes than its header promises."""
    lines = head.decode("latin-1").split("\n")
    fields = {line.split(" ", 2)[0]: line.split(" ", 2)[2] for line in lines if line.count(" ") >= 2 and " -" in line}
    if "shorten" in fields.get("sample_coding", ""):
        raise AudioError("compressed by shorten; unpack it first, e.g. with sph2pipe")
    try:
        header_bytes = int(lines[1])
        per_frame = int(fields.get("sample_n_bytes", "2")) * int(fields.get("channel_count", "1"))
        promised = int(fields["sample_count"]) * per_frame
    except (KeyError, ValueError, IndexError):
        raise AudioError("SPHERE header without a valid sample_count") from None
    if header_bytes + promised > size:
        raise AudioError(f"cut short: {max(0, size - header_bytes):,} of {promised:,} bytes of sound are there")
