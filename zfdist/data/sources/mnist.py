"""Binary MNIST from what it is handed round as: Larochelle's text files, MATLAB files, or the IDX files of grey images.

Text and MATLAB files hold the standard, fixed binarisation (Larochelle and Murray 2011), 50,000 / 10,000 / 10,000 rows
of 784 pixels. IDX files hold grey values; they are made binary once, each pixel 1 with probability grey / 255, by numbers
that follow from a seed, and their last 10,000 training images are validation.
"""

import gzip
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import scipy.io
from numpy.typing import NDArray

from zfdist.data.kinds import BITS, NO_LABEL
from zfdist.data.manifest import SPLITS
from zfdist.data.order import mix
from zfdist.data.sources.convert import (
    Outcome,
    PlannedShard,
    Progress,
    Report,
    convert,
    existing,
    json_sha256,
    licence_beside,
    silent,
)
from zfdist.data.sources.inputs import SourceError, content_sha256
from zfdist.data.store_writer import Recording

VERSION = 1
PIXELS = 784
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
BLOCK_IMAGES = 4096

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Mnist:
    """What to convert and how."""

    source: Path
    """Folder with a file for each split."""
    binarise_seed: int = 0
    """Fixes which pixels of grey images are 1."""
    idx_valid: int = 10_000
    """Last training images of the IDX files that are validation."""
    licence: str = ""

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        if not 0 <= self.binarise_seed < 1 << 63:
            raise SourceError(f"--binarise-seed {self.binarise_seed}: must be 0 to 2^63 - 1")
        if self.idx_valid < 1:
            raise SourceError(f"--idx-valid {self.idx_valid}: must be at least 1")


class Image(NamedTuple):
    """A binary image [784], where it came from, and its label (-1: unknown)."""

    pixels: Bytes
    row: int
    label: int


class _Part(NamedTuple):
    """What a split is made of: a file, and for IDX its labels and which of its rows."""

    path: Path
    form: str
    labels: Path | None = None
    first: int = 0
    stop: int | None = None


def prepare(options: Mnist, out: Path, progress: Progress = silent) -> Outcome:
    """Convert MNIST files to a store of images in folder `out`.

    Raises SourceError naming file and line (or row) for anything that is no row of 784 binary pixels.
    """
    parts = find(options)
    files = {path.name: content_sha256(path) for part in parts.values() for path in (part.path, part.labels) if path}
    is_grey = parts["train"].form == "idx"
    source: dict[str, Any] = {
        "converter": "mnist",
        "version": VERSION,
        "form": parts["train"].form,
        "files": files,
        "binarised": f"grey / 255 against seed {options.binarise_seed}" if is_grey else "in the files",
        "split": f"the last {options.idx_valid} of train are valid" if is_grey else "by file name",
    }
    outcome = existing(out, source)
    if outcome is not None:
        return outcome
    plan = []
    for split, part in parts.items():
        key = json_sha256([VERSION, files, part.form, part.first, part.stop, options.binarise_seed])
        plan.append(PlannedShard(split, f"{split}-00000", key, _rows(part), _maker(part, options.binarise_seed)))
    return convert(
        out,
        plan,
        source=source,
        licence=options.licence or licence_beside(options.source),
        total=sum(shard.samples for shard in plan),
        progress=progress,
        kind=BITS,
    )


def _maker(part: _Part, seed: int) -> Any:
    def recordings(notes: dict[str, str], report: Report) -> Iterator[Recording]:
        for done, image in enumerate(images(part, seed)):
            yield Recording(f"{part.path.name}:{image.row}", image.pixels, image.label)
            if done % 1000 == 999:
                report(done + 1, part.path.name)

    return recordings


def find(options: Mnist) -> dict[str, _Part]:
    """Find the files of each split by their names; raises SourceError if one is missing or two could be meant."""
    if not options.source.is_dir():
        raise SourceError(f"{options.source}: no such folder")
    files = sorted(path for path in options.source.rglob("*") if path.is_file() and path.name[0] != ".")
    fixed = {
        split: [p for p in files if split in p.name.lower() and _form(p) in ("text", "matlab")] for split in SPLITS
    }
    if any(fixed.values()):
        return {split: _Part(path, _form(path)) for split in SPLITS for path in [_only(options, split, fixed[split])]}
    grey = {
        name: [path for path in files if name in path.name.lower() and _form(path) == "idx"]
        for name in ("train", "t10k")
    }
    if not any(grey.values()):
        raise SourceError(
            f"{options.source}: no MNIST in it; there must be binarized_mnist_train, .._valid and .._test (.amat text or "
            "MATLAB), or train-images-idx3-ubyte and t10k-images-idx3-ubyte (or .gz)"
        )
    train, test = (
        _only(options, name, [path for path in paths if _idx_magic(path) == IMAGES_MAGIC])
        for name, paths in grey.items()
    )
    labels = [
        next((path for path in paths if _idx_magic(path) == LABELS_MAGIC), None)
        for paths in (grey["train"], grey["t10k"])
    ]
    count = _idx_shape(train)[0]
    if count <= options.idx_valid:
        raise SourceError(f"{train}: {count} images leave none to train on after --idx-valid {options.idx_valid}")
    cut = count - options.idx_valid
    return {
        "train": _Part(train, "idx", labels[0], 0, cut),
        "valid": _Part(train, "idx", labels[0], cut, count),
        "test": _Part(test, "idx", labels[1]),
    }


def _only(options: Mnist, name: str, paths: list[Path]) -> Path:
    if len(paths) != 1:
        what = "no file" if not paths else f"{len(paths)} files ({', '.join(path.name for path in paths)})"
        raise SourceError(f"{options.source}: {what} for {name!r}; there must be one with {name!r} in its name")
    return paths[0]


def _form(path: Path) -> str | None:
    """Tell by the first bytes what a file is: "text", "matlab", "idx" or None."""
    try:
        with _opened(path) as file:
            head = file.read(64)
    except (OSError, EOFError):
        return None
    if head.startswith(b"MATLAB 5.0"):
        return "matlab"
    if head[:4] in (struct.pack(">I", IMAGES_MAGIC), struct.pack(">I", LABELS_MAGIC)):
        return "idx"
    return "text" if path.suffix.lower() == ".amat" else None


def _opened(path: Path) -> IO[bytes]:
    """Open a file, unpacked if it is gzip by its first bytes."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_packed else path.open("rb")  # type: ignore[return-value]


def _rows(part: _Part) -> int:
    """Return about how many rows a part has."""
    if part.form == "idx":
        return (part.stop or _idx_shape(part.path)[0]) - part.first
    return part.path.stat().st_size // (2 * PIXELS)


def images(part: _Part, seed: int) -> Iterator[Image]:
    """Yield the images of a part; raises SourceError naming file and line or row for a bad one."""
    if part.form == "text":
        return _text_images(part.path)
    return _matlab_images(part.path) if part.form == "matlab" else _idx_images(part, seed)


def _text_images(path: Path) -> Iterator[Image]:
    """Read lines of 784 numbers 0 or 1 parted by blanks, a line at a time; rows are counted from 1."""
    with _opened(path) as file:
        number = 0
        for number, line in enumerate(file, start=1):
            words = line.split()
            if not words:
                raise SourceError(f"{path}, line {number}: empty; there must be {PIXELS} numbers 0 or 1")
            if len(words) != PIXELS:
                raise SourceError(f"{path}, line {number}: {len(words)} numbers, not {PIXELS}: cut short, or not MNIST")
            pixels = np.frombuffer(b"".join(words), np.uint8) - ord("0")
            if pixels.size != PIXELS or pixels.max() > 1:
                column, word = next((i, word) for i, word in enumerate(words, start=1) if word not in (b"0", b"1"))
                raise SourceError(
                    f"{path}, line {number}: number {column} is {word.decode('ascii', 'replace')[:20]!r}, not 0 or 1"
                )
            yield Image(pixels, number, NO_LABEL)
        if not number:
            raise SourceError(f"{path}: empty file")


def _matlab_images(path: Path) -> Iterator[Image]:
    """Read a MATLAB 5 file with one matrix of 784 columns; rows are counted from 1. Holds it in memory."""
    try:
        content = scipy.io.loadmat(str(path), appendmat=False)
    except Exception as error:  # scipy raises whatever a damaged file makes it stumble over
        raise SourceError(f"{path}: not readable as MATLAB ({error})") from None
    found = {name: value for name, value in content.items() if not name.startswith("__")}
    matrices = {name: np.asarray(value) for name, value in found.items() if np.shape(value)[1:] == (PIXELS,)}
    if len(matrices) != 1:
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in found.items()) or "nothing"
        raise SourceError(f"{path}: must hold one matrix of {PIXELS} columns, holds {shapes}")
    (matrix,) = matrices.values()
    for row, values in enumerate(matrix, start=1):
        pixels = values.astype(np.uint8)
        if (pixels != values).any() or pixels.max() > 1:
            column = int(np.flatnonzero((values != 0) & (values != 1))[0])
            raise SourceError(f"{path}, row {row}: column {column + 1} is {values[column]}, not 0 or 1")
        yield Image(pixels, row, NO_LABEL)


def _idx_magic(path: Path) -> int:
    with _opened(path) as file:
        return int.from_bytes(file.read(4), "big")


def _idx_shape(path: Path) -> tuple[int, int]:
    """Return images and pixels of an image; raises SourceError unless the pixels are MNIST's."""
    with _opened(path) as file:
        _, count, height, width = struct.unpack(">IIII", _exactly(path, file, 16))
    if height * width != PIXELS:
        raise SourceError(f"{path}: images of {height} x {width}, not 28 x 28")
    return count, PIXELS


def _exactly(path: Path, file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes; raises SourceError if there are fewer, or they cannot be unpacked."""
    try:
        content = file.read(size)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: not readable ({error})") from None
    if len(content) != size:
        raise SourceError(f"{path}: cut short: {size - len(content):,} bytes are missing")
    return content


def _idx_images(part: _Part, seed: int) -> Iterator[Image]:
    """Read grey images and make them binary; rows are counted from 1."""
    count, _ = _idx_shape(part.path)
    labels = _idx_labels(part.labels, count) if part.labels else np.full(count, NO_LABEL)
    with _opened(part.path) as file:
        file.read(16)
        for first in range(0, count, BLOCK_IMAGES):
            size = min(BLOCK_IMAGES, count - first)
            grey = np.frombuffer(_exactly(part.path, file, size * PIXELS), np.uint8).reshape(size, PIXELS)
            wanted = range(max(first, part.first), min(first + size, part.stop or count))
            if wanted:
                picked = grey[wanted.start - first : wanted.stop - first]
                for row, pixels in zip(wanted, binarised(picked, wanted.start, part.path.name, seed), strict=True):
                    yield Image(pixels, row + 1, int(labels[row]))
        if file.read(1):
            raise SourceError(f"{part.path}: longer than the {count:,} images that its header promises")


def _idx_labels(path: Path, count: int) -> NDArray[np.int64]:
    with _opened(path) as file:
        _, found = struct.unpack(">II", _exactly(path, file, 8))
        if found != count:
            raise SourceError(f"{path}: {found:,} labels for {count:,} images")
        return np.frombuffer(_exactly(path, file, count), np.uint8).astype(np.int64)


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
