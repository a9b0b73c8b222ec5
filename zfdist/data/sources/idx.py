"""IDX files, in which MNIST's grey images were published, and making them binary by numbers that follow from a seed."""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import BITS, NO_LABEL
from zfdist.data.order import mix
from zfdist.data.sources.inputs import SourceError

PIXELS = BITS.width or 0
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
BLOCK_IMAGES = 4096

Bytes = NDArray[np.uint8]


class Image(NamedTuple):
    """A binary image [784], where it came from, and its label (-1: unknown)."""

    pixels: Bytes
    row: int
    label: int


def opened(path: Path) -> IO[bytes]:
    """Open a file, unpacked if it is gzip by its first bytes."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_packed else path.open("rb")  # type: ignore[return-value]


def magic(path: Path) -> int:
    """Return the first four bytes of a file, which in an IDX file say what it holds."""
    with opened(path) as file:
        return int.from_bytes(file.read(4), "big")


def shape(path: Path) -> tuple[int, int]:
    """Return images and pixels of an image; raises SourceError unless the pixels are MNIST's."""
    with opened(path) as file:
        _, count, height, width = struct.unpack(">IIII", exactly(path, file, 16))
    if height * width != PIXELS:
        raise SourceError(f"{path}: images of {height} x {width}, not 28 x 28")
    return count, PIXELS


def exactly(path: Path, file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes; raises SourceError if there are fewer, or they cannot be unpacked."""
    try:
        content = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: not readable ({error})") from None
    if len(content) != size:
        raise SourceError(f"{path}: cut short: {size - len(content):,} bytes are missing")
    return content


def images(path: Path, labels: Path | None, first: int, stop: int, seed: int) -> Iterator[Image]:
    """Read grey images first .. stop - 1 and make them binary; rows are counted from 1.

    Raises SourceError if the file or that of the labels is cut short or too long.
    """
    count, _ = shape(path)
    label_of = _labels(labels, count) if labels else np.full(count, NO_LABEL)
    with opened(path) as file:
        file.read(16)
        for start in range(0, count, BLOCK_IMAGES):
            size = min(BLOCK_IMAGES, count - start)
            grey = np.frombuffer(exactly(path, file, size * PIXELS), np.uint8).reshape(size, PIXELS)
            wanted = range(max(start, first), min(start + size, stop))
            if wanted:
                picked = grey[wanted.start - start : wanted.stop - start]
                for row, pixels in zip(wanted, binarised(picked, wanted.start, path.name, seed), strict=True):
                    yield Image(pixels, row + 1, int(label_of[row]))
        if file.read(1):
            raise SourceError(f"{path}: longer than the {count:,} images that its header promises")


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    with opened(path) as file:
        _, found = struct.unpack(">II", exactly(path, file, 8))
        if found != count:
            raise SourceError(f"{path}: {found:,} labels for {count:,} images")
        return np.frombuffer(exactly(path, file, count), np.uint8).astype(np.int64)


def binarised(grey: Bytes, first: int, file: str, seed: int) -> Bytes:
    """Draw each pixel of grey images [N, 784] as 1 with probability grey / 255.

    The number for a pixel follows from the seed, whether the file is train or test, and the place of the pixel in it
    (`first` is the row of the first image): neither from packing nor from what is read together.
    """
    text = f"zfdist.mnist.v1/{seed}/{'train' if 'train' in file.lower() else 'test'}"
    key = np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
    places = np.arange(first * PIXELS, (first + len(grey)) * PIXELS, dtype=np.uint64).reshape(grey.shape)
    drawn = mix(key + (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)  # 24 bits, SplitMix64
    is_one: NDArray[np.bool_] = drawn * np.uint64(255) < grey.astype(np.uint64) << np.uint64(24)
    return is_one.astype(np.uint8)
