"""`zfdist prepare mnist` on the layouts of torchvision, Keras, Kaggle and EMNIST, packed and odd files."""

import bz2
import gzip
import io
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from raw import prepared, refusal

from zfdist.data.store import Store

Array = NDArray[np.generic]
RNG = np.random.default_rng(3)
GREY = {"train": RNG.integers(0, 256, (50, 784), "u1"), "t10k": RNG.integers(0, 256, (20, 784), "u1")}
LABELS = {name: RNG.integers(0, 10, len(pixels), "u1") for name, pixels in GREY.items()}
for _pixels in GREY.values():
    _pixels[:, [0, -1]] = 0  # as the corners of digits are
BITS = {name: RNG.integers(0, 2, (12, 784), "u1") for name in ("train", "valid", "test")}
FLAGS = ("--idx-valid", "10")


def idx(pixels: Array) -> bytes:
    return struct.pack(">IIII", 0x803, len(pixels), 28, 28) + pixels.tobytes()


def idx_labels(labels: Array) -> bytes:
    return struct.pack(">II", 0x801, len(labels)) + labels.tobytes()


def torchvision(folder: Path, train: str = "train", test: str = "t10k") -> Path:
    folder.mkdir(parents=True)
    for name, called in (("train", train), ("t10k", test)):
        (folder / f"{called}-images-idx3-ubyte").write_bytes(idx(GREY[name]))
        (folder / f"{called}-labels-idx1-ubyte").write_bytes(idx_labels(LABELS[name]))
    return folder


def made(source: Path) -> Store:
    out = source.parent / f"{source.name}.out"
    prepared("mnist", "--source", source, "--out", out, *FLAGS)
    return Store.open(out, "always")


def said_of(source: Path) -> str:
    return refusal("mnist", "--source", source, "--out", source.parent / "refused", *FLAGS)


def stored(store: Store, split: str) -> Array:
    count = len(store.lengths(split))
    return store.gather(split, np.arange(count), np.zeros(count, np.int64), 784)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(torchvision(tmp_path_factory.mktemp("plain") / "in"))


def test_equal_content_counts_once_and_other_content_is_refused(
    tmp_path: Path, plain: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = torchvision(tmp_path / "in" / "MNIST" / "raw")
    for path in list(raw.iterdir()):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        inner = tmp_path / "in" / path.name.replace("-idx", ".idx")
        inner.mkdir()
        (inner / path.name.replace("-idx", ".idx")).write_bytes(path.read_bytes())
    assert made(tmp_path / "in").fingerprint == plain.fingerprint
    assert "left out: 8 other form or copy of the images" in capsys.readouterr().out
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels(LABELS["train"][::-1])))
    said = said_of(tmp_path / "in")
    assert "MNIST/raw/train-labels-idx1-ubyte, MNIST/raw/train-labels-idx1-ubyte.gz" in said and "do not hold" in said


def keras(scale: Callable[[Array], Array]) -> bytes:
    file = io.BytesIO()
    arrays = {
        f"{axis}_{role}": scale(GREY[name].reshape(-1, 28, 28)) if axis == "x" else LABELS[name]
        for role, name in (("train", "train"), ("test", "t10k"))
        for axis in "xy"
    }
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "scale",
    [lambda x: x, lambda x: x.astype("f4"), lambda x: x.astype("f4") / 255, lambda x: x.astype("i8")[..., None]],
)
def test_npz_of_keras(tmp_path: Path, plain: Store, scale: Callable[[Array], Array]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mnist.npz").write_bytes(keras(scale))
    store = made(tmp_path / "in")
    assert store.names("test")[0] == "mnist.npz/x_test:1"
    assert [np.array_equal(stored(store, split), stored(plain, split)) for split in store.splits] == [True] * 3
    labels = store.labels("test")
    assert labels is not None and np.array_equal(labels, LABELS["t10k"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"arr_0": np.zeros((3, 28, 28))},
            "must hold x_train and x_test, images of 28 x 28; it holds arr_0 (3, 28, 28)",
        ),
        ({"x_train": np.zeros((3, 27, 28))}, "it holds x_train (3, 27, 28)"),
        ({"x_train": np.array([{}] * 3)}, "mnist.npz: not readable as arrays of NumPy"),
        ({"x_train": np.full((30, 784), -0.4), "x_test": np.zeros((3, 784))}, "pixels of -0.4 to -0.4; they must be"),
        ({"x_train": np.full((30, 784), 2.5), "x_test": np.zeros((3, 784))}, "pixels of 2.5 to 2.5"),
        ({"x_train": np.full((30, 784), 256), "x_test": np.zeros((3, 784))}, "pixels of 256 to 256"),
        ({"x_train": np.full((30, 784), np.nan), "x_test": np.zeros((3, 784))}, "pixels of nan to nan"),
        ({"x_train": np.zeros((30, 784)), "y_train": np.zeros(29, int), "x_test": np.zeros((3, 784))}, "y_train must"),
        ({"x_train": np.zeros((30, 784))}, "must hold x_train and x_test"),
    ],
)
def test_other_npz(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "mnist.npz", **arrays)  # type: ignore[arg-type]
    assert message in said_of(tmp_path / "in")


def kaggle(name: str, header: bool, label: int | None) -> str:
    names = [f"pixel{i}" for i in range(784)]
    rows = [list(map(str, row)) for row in GREY[name].tolist()]
    if label is not None:
        names.insert(label % 785, "label")
        for row, its in zip(rows, LABELS[name].tolist(), strict=True):
            row.insert(label % 785, str(its))
    return "".join(",".join(row) + "\n" for row in ([names] if header else []) + rows)


@pytest.mark.parametrize(("header", "label"), [(True, 0), (False, 0), (True, 784), (False, 784), (True, None)])
def test_csv_of_kaggle(
    tmp_path: Path, plain: Store, header: bool, label: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.csv").write_text(kaggle("train", header, label))
    with zipfile.ZipFile(tmp_path / "in" / "test.csv.zip", "w") as archive:
        archive.writestr("test.csv", kaggle("t10k", True, None))
    (tmp_path / "in" / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    store = made(tmp_path / "in")
    assert [np.array_equal(stored(store, split), stored(plain, split)) for split in store.splits] == [True] * 3
    labels = store.labels("train")
    assert (labels is None) == (label is None) and (labels is None or np.array_equal(labels, LABELS["train"][:40]))
    said = capsys.readouterr().out
    assert f"images without labels: {'train, valid, test' if label is None else 'test'}" in said
    assert "left out: 1 of .csv" in said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], "train.csv, line 51: "),
        (lambda text: text.replace("label", "other", 1), "785 columns (other, pixel0, pixel1, ... pixel783)"),
        (lambda text: text.replace(",0\n", ",x\n", 1), "train.csv, line 2: could not convert"),
        (lambda text: text.replace(",0\n", ",300\n", 1), "pixels of 0 to 300"),
        (lambda text: text.replace("pixel783\n", "pixel783\n-"), "labels must be whole numbers >= 0"),
    ],
)
def test_bad_csv(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.csv").write_text(damage(kaggle("train", True, 0)))
    (tmp_path / "in" / "test.csv").write_text(kaggle("t10k", True, None))
    assert message in said_of(tmp_path / "in")


def test_emnist_is_put_right_and_several_sets_are_refused(
    tmp_path: Path, plain: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = torchvision(tmp_path / "in", "emnist-digits-train", "emnist-digits-test")
    for path in folder.glob("*-images-*"):
        raw = path.read_bytes()
        pixels = np.frombuffer(raw[16:], np.uint8).reshape(-1, 28, 28).swapaxes(1, 2)
        path.write_bytes(raw[:16] + pixels.tobytes())
    store = made(folder)
    assert [np.array_equal(stored(store, split), stored(plain, split)) for split in store.splits] == [True] * 3
    assert "EMNIST holds images with rows and columns exchanged; they are put right" in capsys.readouterr().out
    (folder / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(GREY["train"][:30]))
    assert "emnist-digits-train-images-idx3-ubyte, emnist-letters-train-images-idx3-ubyte) for 'train'" in said_of(
        folder
    )


def test_pixels_that_are_binary_already_are_not_drawn(tmp_path: Path) -> None:
    folder = torchvision(tmp_path / "in")
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(GREY["t10k"] // 128))
    assert np.array_equal(stored(made(folder), "test"), GREY["t10k"] // 128)


def binarised(folder: Path, suffix: str, content: Callable[[Array], bytes]) -> Path:
    folder.mkdir()
    for split, bits in BITS.items():
        (folder / f"binarized_mnist_{split}{suffix}").write_bytes(content(bits))
    return folder


def text(bits: Array, blank: str = " ", end: str = "\n") -> bytes:
    return "".join(blank.join(map(str, row)) + end for row in bits.tolist()).encode()


def saved(bits: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, bits)
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def matlab_73(bits: Array, userblock: int = 512) -> bytes:
    """Return what MATLAB's save(NAME, '-v7.3') writes; without the block before it, what Octave's does."""
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=userblock) as content:
        content["pixels"] = bits.T
    file.seek(0)
    if userblock:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".amat.gz", lambda bits: gzip.compress(text(bits))),
        (".amat", lambda bits: bz2.compress(text(bits))),
        (".xz", lambda bits: lzma.compress(text(bits))),
        (".zip", lambda bits: zipped("x.amat", text(bits))),
        (".txt", text),
        (".amat", lambda bits: text(bits) + b"\n \r\n"),
        (".amat", lambda bits: text(bits, end=" \r\n")),
        (".amat", lambda bits: text(bits, end="\r")),
        (".amat", lambda bits: b"\xef\xbb\xbf" + text(bits, "\t")),
        (".npy", saved),
        (".npy", lambda bits: saved(bits.reshape(-1, 28, 28).astype(bool))),
        (".npy.gz", lambda bits: gzip.compress(saved(bits.astype("f4")))),
        (".mat", lambda bits: matlab_73(bits)),
        (".mat", lambda bits: matlab_73(bits.astype("f8"), userblock=0)),
    ],
)
def test_binary_images_in_other_files(tmp_path: Path, suffix: str, content: Callable[[Array], bytes]) -> None:
    store = made(binarised(tmp_path / "in", suffix, content))
    assert all(np.array_equal(stored(store, split), bits) for split, bits in BITS.items())


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".amat", lambda bits: text(bits / 2), "train.amat, line 1: number 1 is '0.5', not 0 or 1; grey images"),
        (
            ".amat",
            lambda bits: text(np.c_[bits, bits[:, 0]]),
            "line 1: 785 numbers, there must be 784; .* may be a label",
        ),
        (".amat.gz", lambda bits: gzip.compress(text(bits))[:-40], "amat.gz: not readable .Compressed file ended"),
        (".npy", lambda bits: saved(bits * 2), "train.npy, row 1: column .* is 2, not 0 or 1"),
        (".npy", lambda bits: saved(np.array([{}])), "train.npy: not readable as an array of NumPy"),
        (".npy", lambda bits: saved(bits[:, 1:]), r"train.npy: must hold images \[N, 784\], holds uint8 \(12, 783\)"),
        (".mat", lambda bits: b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF", "not readable as MATLAB"),
        (".mat", lambda bits: matlab_73(bits[:, 1:]), r"must hold one matrix of 784 columns, holds pixels \(12, 783\)"),
        (".amat.zst", lambda bits: b"\x28\xb5\x2f\xfd", "amat.zst: packed by zstd; unpack it"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, suffix: str, content: Callable[[Array], bytes], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said_of(binarised(tmp_path / "in", suffix, content)))


def test_what_is_there_instead_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0001.png").write_bytes(b"\x89PNG")
    assert "no MNIST in it" in said_of(tmp_path / "in") and "there are files .png" in said_of(tmp_path / "in")
