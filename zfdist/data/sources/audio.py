"""One audio file to mono int16 at a wanted rate: WAV, FLAC, NIST SPHERE and MP3, in blocks of bounded size.

libsndfile returns a short array from a file that was cut off, without an error; so what was read is compared with what
the file's own header promises.
"""

import io
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from zfdist.data.sources import containers, mpeg
from zfdist.data.sources.containers import AudioError, Corrected

__all__ = ["AudioError", "estimated_samples", "is_audio", "read", "resampled"]

Floats = NDArray[np.float64]

BLOCK_FRAMES = 1 << 18
UNKNOWN_FRAMES = 1 << 40
"""A stream of unknown length claims the largest number there is."""
SUFFIXES = (".wav", ".flac", ".mp3", ".sph", ".nist")
MOST_RATIO = 1 << 16
"""Largest number in the reduced ratio of two rates: the filter has 20 times as many taps."""
LOUDEST = 8.0
"""Largest value of a float file whose full scale is 1; some lie above 1, from mixing or from lossy coding."""
SCALES = (128, 1 << 15, 1 << 23, 1 << 31)
"""Full scales of integers, which some programs write as floats without dividing."""


def is_audio(path: Path) -> bool:
    """Tell by the first bytes, or failing that by the suffix, whether a file claims to be audio of a known kind.

    Raises AudioError if it cannot be read and its suffix does not tell.
    """
    return path.suffix.lower() in SUFFIXES or containers.kind(containers.head_of(path)) is not None


def estimated_samples(path: Path, rate: int) -> int:
    """Return about how many samples `read` will give, from the header alone; 0 if there is no telling."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return 0
    if info.samplerate < containers.RATES[0] or info.frames >= UNKNOWN_FRAMES:
        return 0  # a rate of 1 would promise gigabytes
    return int(info.frames) * rate // int(info.samplerate)


def read(path: Path, rate: int, remarks: list[str] | None = None) -> NDArray[np.int16]:
    """Decode a file to int16 [samples] at `rate` Hz: channels averaged, resampled, rounded, saturated.

    16-bit mono at that rate comes through unchanged. Memory: the result twice, and a few blocks; for MP3 also the file
    twice. What is to be said of a file that was read nevertheless goes into `remarks`. Raises AudioError for a file
    that is empty, cut short, unreadable, of an unknown kind, of an impossible rate, or not in the scale of sound.
    """
    said: list[str] = []
    head = containers.head_of(path)
    if not head:
        raise AudioError("empty file")
    kind = containers.kind(head)
    if kind is None and path.suffix.lower() != ".mp3":
        raise AudioError(containers.other_kind(head))
    try:
        if kind in (None, "mp3"):
            samples = _read_mp3(path, rate, is_certain=kind == "mp3", head=head, said=said)
        else:
            checked = containers.check(path, kind or "")
            if checked.is_streamed:
                said.append("its header does not tell its length; read to the end")
            if checked.corrections:
                with Corrected(path, checked.corrections) as corrected:
                    samples = _decoded(corrected, rate, said)  # type: ignore[arg-type]  # as good as a BinaryIO
            else:
                samples = _decoded(path, rate, said)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = str(error).replace(str(path), "file").strip()
        raise AudioError(f"not decodable: {reason or 'damaged'}") from None
    if not samples.size:
        raise AudioError("holds no samples")
    if remarks is not None:
        remarks += dict.fromkeys(said)
    return samples


def _read_mp3(path: Path, rate: int, *, is_certain: bool, head: bytes, said: list[str]) -> NDArray[np.int16]:
    """Decode the streams of an MP3 file one after the other; one whose first bytes are none may have junk in front."""
    try:
        streams, remark = mpeg.streams(path.read_bytes())
    except AudioError:
        if is_certain:
            raise
        raise AudioError(containers.other_kind(head)) from None
    pieces = [_decoded(io.BytesIO(stream.content), rate, said) for stream in streams]
    if remark:
        said.append(remark)
    return np.concatenate(pieces)


def _decoded(source: Path | BinaryIO, rate: int, said: list[str]) -> NDArray[np.int16]:
    with _SoundFile(str(source) if isinstance(source, Path) else source) as file:
        containers.check_format(file.samplerate, file.channels)
        blocks = _mono_blocks(file, said)
        pcm = [_to_int16(block) for block in resampled(blocks, file.samplerate, rate)]
    return np.concatenate(pcm) if pcm else np.empty(0, np.int16)


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file of which a stream of unknown length is not wound, as its base does after every read: that fails there."""

    def seekable(self) -> bool:
        """Say if it can be wound."""
        return bool(super().seekable() and self.frames < UNKNOWN_FRAMES)


def resampled(blocks: Iterator[Floats], from_rate: int, to_rate: int) -> Iterator[Floats]:
    """Resample a signal given in blocks of any size, as `scipy.signal.resample_poly` (its own filter) does it whole.

    Each piece is filtered together with as many samples on both sides as the filter reaches, so no seam is left.
    Raises AudioError if the rates have a ratio of numbers so large that the filter would be absurd.
    """
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    if up == down:
        yield from blocks
        return
    if max(up, down) > MOST_RATIO:
        raise AudioError(
            f"a sample rate of {from_rate:,} Hz, whose ratio to {to_rate:,} Hz is {down:,} to {up:,}: not resampled; "
            f"resample the file, e.g. with sox FILE -r {to_rate} NEW.wav"
        )
    from scipy.signal import resample_poly  # here, as it takes two seconds to import, and workers are many

    taps = _filter(max(up, down))
    reach = 10 * max(up, down)
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


@lru_cache(maxsize=4)
def _filter(factor: int) -> Floats:
    from scipy.signal import firwin

    taps: Floats = firwin(20 * factor + 1, 1.0 / factor, window=("kaiser", 5.0))
    return taps


def _mono_blocks(file: soundfile.SoundFile, said: list[str]) -> Iterator[Floats]:
    """Yield the mean of the channels in PCM units.

    Raises AudioError if the file ends before its header says, or its floats are not in the scale of -1 to 1.
    """
    total = beyond = 0
    loudest = 0.0
    while True:
        # Many channels make a frame large.
        block = file.read(max(1, BLOCK_FRAMES * 8 // max(8, file.channels)), dtype="float64", always_2d=True)
        if not len(block):
            break
        if not np.isfinite(block).all():
            raise AudioError("holds values that are not finite")
        if file.subtype in ("FLOAT", "DOUBLE"):
            loudest = max(loudest, float(np.abs(block).max()))
            beyond += int((np.abs(block) > 1).sum())
        total += len(block)
        yield block.mean(axis=1) * 32768.0
    if file.frames < UNKNOWN_FRAMES and total != file.frames:
        raise AudioError(f"cut short: {total:,} of {file.frames:,} frames are there")
    share = beyond / max(1, total * file.channels)
    if loudest > LOUDEST or share > 0.5:
        scale = next((scale for scale in SCALES if LOUDEST < loudest <= scale), None)
        remedy = f"divide them by {scale:,}, or write integers" if scale else "bring them to -1 to 1"
        raise AudioError(f"float values up to {loudest:,.6g}, {100 * share:.3g} % beyond full scale, 1: {remedy}")
    if beyond:
        said.append(f"{100 * share:.3g} % of its float values are beyond full scale, up to {loudest:.3g}: clipped")


def _to_int16(block: Floats) -> NDArray[np.int16]:
    return np.clip(np.rint(block), -32768, 32767).astype(np.int16)
