"""Images that are binary in their files: rows of 784 numbers 0 or 1 as text, or in a matrix of MATLAB or NumPy."""

import io
import re
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
_BIT = re.compile(rb"[01](\.0*)?(e[+-]?0+)?", re.IGNORECASE)
_SEPARATORS = bytes.maketrans(b",;", b"  ")
_GREY = "; grey images are read from IDX files, mnist.npz or train.csv"


def text_images(path: Path) -> Iterator[Image]:
    """Read lines of 784 numbers 0 or 1 (or 0.0, 1e0) parted by blanks, commas or semicolons; rows count from 1."""
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
    words = line.translate(_SEPARATORS).split()
    if len(words) != PIXELS:
        more = "; the last may be a label, which must be taken away" if len(words) == PIXELS + 1 else ""
        raise SourceError(f"{where}: {len(words)} numbers, there must be {PIXELS}; it is cut short or not MNIST{more}")
    digits = b"".join(words)
    pixels = np.frombuffer(digits, np.uint8) - ord("0")
    if len(digits) == PIXELS and pixels.max() <= 1:
        return pixels
    return np.array([_bit(word, f"{where}: number {column}") for column, word in enumerate(words, start=1)], np.uint8)


def _bit(word: bytes, where: str) -> int:
    """Return 0 or 1, which programs also write as 0.0000 and 1.0e+00."""
    if not _BIT.fullmatch(word):
        raise SourceError(f"{where} is {word.decode('ascii', 'replace')[:20]!r}, not 0 or 1{_GREY}")
    return word[0] - ord("0")


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
        pixels = values == 1
        others = np.flatnonzero((values != 0) & ~pixels)
        if others.size:
            found = f"column {others[0] + 1} is {values[others[0]]}, not 0 or 1"
            raise SourceError(f"{path}, row {row}: {found}{_GREY}")
        yield Image(pixels.astype(np.uint8), row, NO_LABEL)


FORMS = {"text": text_images, "matlab": matlab_images, "npy": npy_images}
"""How each form of file is read."""
