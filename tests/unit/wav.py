"""WAV files with any header, byte by byte."""

import struct

import numpy as np
from numpy.typing import NDArray

TONE = (3000 * np.sin(np.arange(8000) * 0.05)).astype("<i2")
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"
"""A chunk of tags, as programs put it behind the sound."""


def wav(
    sound: bytes | NDArray[np.generic] = TONE,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    frame_bytes: int | None = None,
    size: int | None = None,
    riff_size: int | None = None,
    magic: bytes = b"RIFF",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a file; sizes and all else are right unless they are given."""
    content = sound if isinstance(sound, bytes) else sound.tobytes()
    size = len(content) if size is None else size
    frame = channels * bits // 8 if frame_bytes is None else frame_bytes
    described = struct.pack("<HHIIHH", tag, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    riff = min(size + 36, 0xFFFFFFFF) if riff_size is None else riff_size
    head = magic + struct.pack("<I", riff) + b"WAVE" + before + b"fmt " + struct.pack("<I", 16) + described
    return head + b"data" + struct.pack("<I", size) + content + after


def floats(sound: NDArray[np.float64], kind: str = "<f4", **header: int) -> bytes:
    """Return a file of floats."""
    return wav(sound.astype(kind), tag=3, bits=np.dtype(kind).itemsize * 8, **header)  # type: ignore[arg-type]


def long_sizes(data_bytes: int) -> bytes:
    """Return the chunk that holds the sizes of an RF64 file."""
    return b"ds64" + struct.pack("<IQQQI", 28, (data_bytes + 80) % (1 << 64), data_bytes, data_bytes // 2, 0)
