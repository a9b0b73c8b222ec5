"""Binary MNIST from what it is handed round as: Larochelle's text files, MATLAB files, or the IDX files of grey images.

Text and MATLAB files hold the standard, fixed binarisation (Larochelle and Murray 2011), 50,000 / 10,000 / 10,000 rows
of 784 pixels. IDX files hold grey values; they are made binary once, each pixel 1 with probability grey / 255, by
numbers that follow from a seed, and their last 10,000 training images are validation.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from zfdist.data.kinds import BITS, NO_LABEL
from zfdist.data.manifest import SPLITS
from zfdist.data.sources import idx
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
from zfdist.data.sources.idx import IMAGES_MAGIC, LABELS_MAGIC, PIXELS, Image, opened
from zfdist.data.sources.inputs import SourceError, content_sha256
from zfdist.data.store_writer import Recording

VERSION = 1


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
        return {
            split: _Part(path, _form(path) or "text")
            for split in SPLITS
            for path in [_only(options, split, fixed[split])]
        }
    grey = {
        name: [path for path in files if name in path.name.lower() and _form(path) == "idx"]
        for name in ("train", "t10k")
    }
    if not any(grey.values()):
        raise SourceError(
            f"{options.source}: no MNIST in it; there must be binarized_mnist_train, .._valid and .._test (.amat text "
            "or MATLAB), or train-images-idx3-ubyte and t10k-images-idx3-ubyte (or .gz)"
        )
    train, test = (
        _only(options, name, [path for path in paths if idx.magic(path) == IMAGES_MAGIC])
        for name, paths in grey.items()
    )
    labels = [
        next((path for path in paths if idx.magic(path) == LABELS_MAGIC), None)
        for paths in (grey["train"], grey["t10k"])
    ]
    count = idx.shape(train)[0]
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
        with opened(path) as file:
            head = file.read(64)
    except (OSError, EOFError, zlib.error):
        return None
    if head.startswith(b"MATLAB 5.0"):
        return "matlab"
    if head[:4] in (struct.pack(">I", IMAGES_MAGIC), struct.pack(">I", LABELS_MAGIC)):
        return "idx"
    return "text" if path.suffix.lower() == ".amat" else None


def _rows(part: _Part) -> int:
    """Return about how many rows a part has."""
    if part.form == "idx":
        return _stop(part) - part.first
    return part.path.stat().st_size // (2 * PIXELS)


def images(part: _Part, seed: int) -> Iterator[Image]:
    """Yield the images of a part; raises SourceError naming file and line or row for a bad one."""
    if part.form == "text":
        return _text_images(part.path)
    if part.form == "matlab":
        return _matlab_images(part.path)
    return idx.images(part.path, part.labels, part.first, _stop(part), seed)


def _stop(part: _Part) -> int:
    return part.stop or idx.shape(part.path)[0]


def _text_images(path: Path) -> Iterator[Image]:
    """Read lines of 784 numbers 0 or 1 parted by blanks, a line at a time; rows are counted from 1."""
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield Image(_bits(line, f"{path}, line {number}"), number, NO_LABEL)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{path}, after line {number}: not readable ({error})") from None
    if not number:
        raise SourceError(f"{path}: empty file")


def _bits(line: bytes, where: str) -> idx.Bytes:
    words = line.split()
    if len(words) != PIXELS:
        raise SourceError(f"{where}: {len(words)} numbers, there must be {PIXELS}; it is cut short or not MNIST")
    digits = b"".join(words)
    pixels = np.frombuffer(digits, np.uint8) - ord("0")
    if len(digits) != PIXELS or pixels.max() > 1:
        column, word = next((i, word) for i, word in enumerate(words, start=1) if word not in (b"0", b"1"))
        raise SourceError(f"{where}: number {column} is {word.decode('ascii', 'replace')[:20]!r}, not 0 or 1")
    return pixels


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
