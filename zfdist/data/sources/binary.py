"""Images that are binary in their files: rows of 784 numbers 0 or 1 as text, or in a matrix of MATLAB or NumPy."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from zfdist.data.kinds import NO_LABEL
from zfdist.data.sources import idx
from zfdist.data.sources.idx import PIXELS, Image, opened
from zfdist.data.sources.inputs import SourceError

HDF5 = b"\x89HDF"
"""How a file of HDF5 begins, which MATLAB 7.3 writes."""


def text_images(path: Path) -> Iterator[Image]:
    """Read lines of 784 numbers 0 or 1 parted by blanks, a line at a time; rows are counted from 1."""
    number, empty = 0, 0
    with opened(path) as file:
        # Latin-1 takes all bytes; a line may end at CR alone.
        for number, line in enumerate(io.TextIOWrapper(file, "latin-1"), start=1):
            text = line.removeprefix("\xef\xbb\xbf")
            if not text.strip():
                empty = empty or number
                continue
            # Empty lines are taken at the end alone: elsewhere a row may be missing.
            yield Image(
                _bits(b"" if empty else text.encode("latin-1"), f"{path}, line {empty or number}"), number, NO_LABEL
            )
    if not number:
        raise SourceError(f"{path}: empty file")


def _bits(line: bytes, where: str) -> idx.Bytes:
    words = line.split()
    if len(words) != PIXELS:
        more = "; the last may be a label, which must be taken away" if len(words) == PIXELS + 1 else ""
        raise SourceError(f"{where}: {len(words)} numbers, there must be {PIXELS}; it is cut short or not MNIST{more}")
    digits = b"".join(words)
    pixels = np.frombuffer(digits, np.uint8) - ord("0")
    if len(digits) != PIXELS or pixels.max() > 1:
        column, word = next((i, word) for i, word in enumerate(words, start=1) if word not in (b"0", b"1"))
        raise SourceError(f"{where}: number {column} is {word.decode('ascii', 'replace')[:20]!r}, not 0 or 1")
    return pixels


def matlab_images(path: Path) -> Iterator[Image]:
    """Read a MATLAB file (5, or 7.3: HDF5) with one matrix of 784 columns; rows are counted from 1. Held in memory."""
    with opened(path) as file:
        whole = io.BytesIO(file.read())
    is_hdf5 = whole.getbuffer()[:4] == HDF5 or whole.getbuffer()[512:516] == HDF5  # MATLAB puts 512 bytes before it
    try:
        found = _hdf5(whole) if is_hdf5 else _matlab_5(whole)
    except Exception as error:  # both libraries raise whatever a damaged file makes them stumble over
        raise SourceError(f"{path}: not readable as MATLAB ({error})") from None
    matrices = {name: np.asarray(value) for name, value in found.items() if np.shape(value)[1:] == (PIXELS,)}
    if len(matrices) != 1:
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in found.items()) or "nothing"
        raise SourceError(f"{path}: must hold one matrix of {PIXELS} columns, holds {shapes}")
    (matrix,) = matrices.values()
    yield from _matrix_images(path, matrix)


def _matlab_5(file: io.BytesIO) -> dict[str, Any]:
    return {name: value for name, value in scipy.io.loadmat(file).items() if not name.startswith("__")}


def _hdf5(file: io.BytesIO) -> dict[str, Any]:
    """Return the matrices of a MATLAB 7.3 file, whose columns HDF5 sees as rows."""
    with h5py.File(file) as content:
        return {name: value[()].T for name, value in content.items() if isinstance(value, h5py.Dataset)}


def npy_images(path: Path) -> Iterator[Image]:
    """Read an array of NumPy of 784 columns; never one of objects, which can run programs."""
    with opened(path) as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise SourceError(f"{path}: not readable as an array of NumPy ({error})") from None
    if array.shape[1:] not in ((PIXELS,), (idx.SIDE, idx.SIDE)) or array.dtype.kind not in "buif":
        raise SourceError(f"{path}: must hold images [N, {PIXELS}], holds {array.dtype} {array.shape}")
    yield from _matrix_images(path, array.reshape(-1, PIXELS))


def _matrix_images(path: Path, matrix: NDArray[Any]) -> Iterator[Image]:
    for row, values in enumerate(matrix, start=1):
        pixels = values.astype(np.uint8)
        if (pixels != values).any() or pixels.max() > 1:
            column = int(np.flatnonzero((values != 0) & (values != 1))[0])
            raise SourceError(f"{path}, row {row}: column {column + 1} is {values[column]}, not 0 or 1")
        yield Image(pixels, row, NO_LABEL)


FORMS = {"text": text_images, "matlab": matlab_images, "npy": npy_images}
"""How each form of file is read."""
