"""IDX files, in which MNIST's grey images were published, and making them binary by numbers that follow from a seed."""

import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import BITS
from zfdist.data.order import mix
from zfdist.data.sources import packed
from zfdist.data.sources.inputs import SourceError
from zfdist.data.sources.packed import UNREADABLE, unpacked

PIXELS = BITS.width or 0
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
SIDE = 28
BLOCK_IMAGES = 4096
EMNIST = re.compile(r"(^|[^a-z])emnist")
"""Names of files of which the images lie on their side: EMNIST has rows and columns exchanged."""

Bytes = NDArray[np.uint8]


class Image(NamedTuple):
    """A binary image [784], where it came from, and its label (-1: unknown)."""

    pixels: Bytes
    row: int
    label: int


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is packed by its first bytes; raises SourceError naming it if that fails."""
    try:
        with unpacked(path) as file:
            yield file
    except UNREADABLE as error:
        raise SourceError(f"{path}: not readable ({error})") from None


def unpacked_sha256(path: Path) -> str:
    """Return the hash of a file's content, unpacked."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def magic(path: Path) -> int:
    """Return the first four bytes of a file, which in an IDX file say what it holds."""
    with opened(path) as file:
        return int.from_bytes(file.read(4), "big")


def shape(path: Path) -> tuple[int, int]:
    """Return images and pixels of an image; raises SourceError unless the pixels are MNIST's."""
    with opened(path) as file:
        _, count, height, width = struct.unpack(">IIII", exactly(path, file, 16))
    if (height, width) != (SIDE, SIDE):
        raise SourceError(f"{path}: images of {height} x {width}, not 28 x 28")
    return count, PIXELS


def exactly(path: Path, file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes; raises SourceError if there are fewer."""
    content = packed.exactly(file, size)
    if len(content) != size:
        raise SourceError(f"{path}: cut short: {size - len(content):,} bytes are missing")
    return content


def blocks(path: Path) -> Iterator[Bytes]:
    """Yield the grey images [N, 784] of a file, some thousand at a time.

    Raises SourceError if it is cut short or too long.
    """
    count, _ = shape(path)
    is_turned = EMNIST.search(path.name.lower()) is not None
    with opened(path) as file:
        exactly(path, file, 16)
        for start in range(0, count, BLOCK_IMAGES):
            size = min(BLOCK_IMAGES, count - start)
            grey = np.frombuffer(exactly(path, file, size * PIXELS), np.uint8).reshape(size, PIXELS)
            yield grey.reshape(size, SIDE, SIDE).swapaxes(1, 2).reshape(size, PIXELS) if is_turned else grey
        if file.read(1):
            raise SourceError(f"{path}: longer than the {count:,} images that its header promises")


def labels(path: Path, count: int) -> NDArray[np.int64]:
    """Return the labels of `count` images; raises SourceError if the file has others than so many."""
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
