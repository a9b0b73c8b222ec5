"""Grey images of digits in IDX, .npz (Keras) and CSV (Kaggle) files, made binary by numbers from a seed."""

import csv
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.data.kinds import NO_LABEL
from zfdist.data.sources import idx
from zfdist.data.sources.idx import BLOCK_IMAGES, PIXELS, SIDE, Bytes, Image, binarised, opened
from zfdist.data.sources.inputs import SourceError

FORMS = ("idx", "npz", "csv")
"""In the order in which they are preferred where several are there."""
LABEL_COLUMNS = ("label", "labels", "class", "y")


class Grey(NamedTuple):
    """Grey images: a file, and which images of it."""

    path: Path
    form: str
    role: str
    """"train" or "test"."""
    labels: Path | None = None
    """File of the labels (IDX); in the others they stand beside the images."""

    @property
    def name(self) -> str:
        """What the images are named after."""
        return f"{self.path.name}/x_{self.role}" if self.form == "npz" else self.path.name


def count(source: Grey) -> int:
    """Return how many images there are."""
    if source.form == "idx":
        return idx.shape(source.path)[0]
    if source.form == "npz":
        return len(_arrays(source)[0])
    with opened(source.path) as file:
        rows = sum(1 for line in file if line.strip())
    return rows - (_layout(source.path)[0] is not None)


def has_labels(source: Grey) -> bool:
    """Tell whether the images have labels."""
    if source.form == "csv":
        return _layout(source.path)[1] is not None
    return source.labels is not None if source.form == "idx" else _arrays(source)[1] is not None


def images(source: Grey, first: int, stop: int, seed: int) -> Iterator[Image]:
    """Read images first .. stop - 1 and make them binary; rows are counted from 1.

    Pixels are whole numbers 0 to 255, or parts of 1 if none of the first block is above that: these are taken 255-fold.
    Raises SourceError for others, and if a file is cut short or too long.
    """
    start, scale = 0, 0
    for pixels, labels in _blocks(source):
        if not scale:
            scale = 255 if pixels.max(initial=0) <= 1 else 1
        wanted = range(max(start, first), min(start + len(pixels), stop))
        if wanted:
            part = slice(wanted.start - start, wanted.stop - start)
            grey = _bytes(pixels[part], scale, f"{source.path}, images {wanted.start + 1} to {wanted.stop}")
            named = source.path.name if source.form != "npz" else source.role
            drawn = binarised(grey, wanted.start, named, seed)
            for row, bits, label in zip(wanted, drawn, labels[part], strict=True):
                yield Image(bits, row + 1, int(label))
        start += len(pixels)


def _bytes(pixels: NDArray[Any], scale: int, where: str) -> Bytes:
    """Return pixels as whole numbers 0 to 255."""
    if pixels.dtype == np.uint8 and scale == 1:
        return pixels
    scaled = pixels.astype(np.float64) * scale
    low, high = scaled.min(), scaled.max()
    if not (low >= 0 and high <= 255) or (scale == 1 and (scaled != np.rint(scaled)).any()):
        raise SourceError(
            f"{where}: pixels of {low / scale:g} to {high / scale:g}; they must be whole numbers 0 to 255, or 0 to 1 "
            "in all images"
        )
    return np.rint(scaled).astype(np.uint8)


def _blocks(source: Grey) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield pixels [N, 784] as they are in the file, and labels [N]."""
    if source.form == "csv":
        yield from _csv_blocks(source.path)
        return
    if source.form == "npz":
        pixels, found = _arrays(source)
        blocks: Iterator[NDArray[Any]] = (pixels[at : at + BLOCK_IMAGES] for at in range(0, len(pixels), BLOCK_IMAGES))
    else:
        size = idx.shape(source.path)[0]
        found = idx.labels(source.labels, size) if source.labels else None
        blocks = idx.blocks(source.path)
    start = 0
    for block in blocks:
        unknown = np.full(len(block), NO_LABEL)
        yield block, unknown if found is None else found[start : start + len(block)]
        start += len(block)


def _arrays(source: Grey) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Return images [N, 784] and labels of an .npz file of Keras; raises SourceError saying what it holds instead."""
    path, role = source.path, source.role
    try:
        with np.load(path, allow_pickle=False) as content:
            shapes = ", ".join(f"{name} {content[name].shape}" for name in content.files) or "nothing"
            pixels = content[f"x_{role}"] if f"x_{role}" in content.files else None
            labels = content[f"y_{role}"] if f"y_{role}" in content.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not readable as arrays of NumPy ({error})") from None
    if (
        pixels is None
        or pixels.shape[1:] not in ((SIDE, SIDE), (SIDE, SIDE, 1), (PIXELS,))
        or pixels.dtype.kind not in "uif"
    ):
        raise SourceError(f"{path}: must hold x_train and x_test, images of 28 x 28; it holds {shapes}")
    if labels is not None and (labels.shape not in ((len(pixels),), (len(pixels), 1)) or labels.dtype.kind not in "ui"):
        raise SourceError(f"{path}: y_{role} must hold a whole number for each image; it holds {shapes}")
    return pixels.reshape(-1, PIXELS), None if labels is None else labels.reshape(-1).astype(np.int64)


def is_csv(head: bytes) -> bool:
    """Tell by the beginning of a file whether it is a table of images."""
    return head.split(b"\n", 1)[0].count(b",") in (PIXELS - 1, PIXELS)


def _layout(path: Path) -> tuple[list[str] | None, int | None]:
    """Return the header of a CSV file, None if it has none, and which column holds the label, None if none does."""
    with opened(path) as file:
        rows = [line.decode("latin-1") for line in islice(file, 1000)]
    cells = next(csv.reader([rows[0].removeprefix("\xef\xbb\xbf")]))
    if all(cell.strip().replace(".", "", 1).isdigit() for cell in cells):
        header = None
        table = [row.strip().split(",") for row in rows]
        varied = [column for column in (0, -1) if len({row[column] for row in table}) > 1]
        if len(cells) == PIXELS:
            return None, None
        if len(varied) != 1:
            raise SourceError(f"{path}: {len(cells)} columns without names, and which holds the label is not clear")
        return header, varied[0] % len(cells)
    names = [cell.strip().lower() for cell in cells]
    labels = [column for column, name in enumerate(names) if name in LABEL_COLUMNS]
    if len(names) - len(labels) != PIXELS or len(labels) > 1:
        raise SourceError(
            f"{path}: {len(names)} columns ({', '.join(cells[:3])}, ... {cells[-1]}); there must be {PIXELS} of pixels "
            "and perhaps one called label"
        )
    return cells, labels[0] if labels else None


def _csv_blocks(path: Path) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    header, label = _layout(path)
    width = PIXELS + (label is not None)
    with opened(path) as file:
        lines = enumerate(file, start=1)
        if header is not None:
            next(lines)
        filled = ((number, line) for number, line in lines if line.strip())
        while block := list(islice(filled, BLOCK_IMAGES)):
            values = np.empty((len(block), width))
            for row, (number, line) in zip(values, block, strict=True):
                cells = line.removeprefix(b"\xef\xbb\xbf").strip().split(b",")
                if len(cells) != width:
                    raise SourceError(
                        f"{path}, line {number}: {len(cells)} cells, there must be {width}; is it cut short?"
                    )
                try:
                    row[:] = np.array(cells).astype(np.float64)
                except ValueError as error:
                    raise SourceError(f"{path}, line {number}: {error}") from None
            if label is None:
                yield values, np.full(len(values), NO_LABEL)
                continue
            labels = values[:, label]
            if not ((labels >= 0) & (labels < 1 << 31) & (labels == np.rint(labels))).all():
                raise SourceError(f"{path}, lines {block[0][0]} to {block[-1][0]}: labels must be whole numbers >= 0")
            yield np.delete(values, label, axis=1), labels.astype(np.int64)
