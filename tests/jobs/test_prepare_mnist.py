"""`zfdist prepare mnist`: text, MATLAB and IDX files, drawn pixels, bad rows, and the real files where they are."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from folders import tree
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw import prepared, refusal

from zfdist.config import DataConfig
from zfdist.data.loader import TrainLoader
from zfdist.data.sources.idx import binarised
from zfdist.data.store import Store

REAL = Path(__file__).parents[3] / "shared" / "data" / "mnist"
SIZES = {"train": 30, "valid": 10, "test": 12}
TEXT = "binarized_mnist_{}.amat"
TRAIN, TEST, TRAIN_LABELS = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"

Bytes = NDArray[np.uint8]


@pytest.fixture
def images() -> dict[str, Bytes]:
    rng = np.random.default_rng(4)
    return {split: (rng.random((size, 784)) < 0.13).astype(np.uint8) for split, size in SIZES.items()}


@pytest.fixture
def texts(tmp_path: Path, images: dict[str, Bytes]) -> Path:
    (tmp_path / "text").mkdir()
    for split, rows in images.items():
        lines = "".join(" ".join(map(str, row)) + (" \n" if i % 2 else "\n") for i, row in enumerate(rows.tolist()))
        (tmp_path / "text" / TEXT.format(split)).write_text(lines)
    return tmp_path / "text"


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    (tmp_path / "idx").mkdir()
    for name, count in ((TRAIN, 40), (TEST, 12)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, :4], pixels[:, -4:] = 0, 255
        (tmp_path / "idx" / name).write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes())
        labels = struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        (tmp_path / "idx" / name.replace("images-idx3", "labels-idx1")).write_bytes(labels)
    return tmp_path / "idx"


def stored(store: Store, split: str) -> Bytes:
    count = len(store.lengths(split))
    return store.gather(split, np.arange(count), np.zeros(count, np.int64), 784)


def test_text_files(texts: Path, tmp_path: Path, images: dict[str, Bytes], capsys: pytest.CaptureFixture[str]) -> None:
    prepared("mnist", "--source", texts, "--out", tmp_path / "out")
    store = Store.open(tmp_path / "out", "always")
    assert all(np.array_equal(stored(store, split), rows) for split, rows in images.items())
    assert store.labels("train") is None and store.names("test")[0] == "binarized_mnist_test.amat:1"
    assert f"train          30        23,520{images['train'].mean():>10.6f}" in capsys.readouterr().out
    before = tree(tmp_path / "out")
    prepared("mnist", "--source", texts, "--out", tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(("number", "between"), [("%.18e", " "), ("%.4f", "\t"), ("%d", ","), ("%.1f", "; ")])
def test_other_ways_to_write_0_and_1(
    tmp_path: Path, images: dict[str, Bytes], texts: Path, number: str, between: str
) -> None:
    for split, rows in images.items():
        np.savetxt(texts / TEXT.format(split), rows, number, delimiter=between)
    prepared("mnist", "--source", texts, "--out", tmp_path / "out")
    store = Store.open(tmp_path / "out", "always")
    assert all(np.array_equal(stored(store, split), rows) for split, rows in images.items())


@pytest.mark.parametrize("suffix", [".mat", ".amat", ".amat.mat"])
def test_matlab_files_hold_the_same(texts: Path, tmp_path: Path, images: dict[str, Bytes], suffix: str) -> None:
    folder = tmp_path / "matlab"
    folder.mkdir()
    for i, (split, rows) in enumerate(images.items()):
        path = folder / f"binarized_mnist_{split}{suffix}"
        scipy.io.savemat(str(path), {"X": rows.astype([np.uint8, np.float64, np.int32][i])}, appendmat=False)
    prepared("mnist", "--source", folder, "--out", tmp_path / "a")
    prepared("mnist", "--source", texts, "--out", tmp_path / "b")
    assert Store.open(tmp_path / "a").fingerprint == Store.open(tmp_path / "b").fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda lines: [*lines[:3], lines[3].replace("1", "2", 1), *lines[4:]],
            r"line 4: number \d+ is '2', not 0 or 1",
        ),
        (lambda lines: [lines[0].replace("1", "0.5", 1), *lines[1:]], r"line 1: number \d+ is '0\.5', not 0 or 1"),
        (lambda lines: [lines[0].replace("0 0", "00 0", 1), *lines[1:]], "line 1: number .* is '00', not 0 or 1"),
        (lambda lines: [*lines[:5], lines[5][:100], *lines[6:]], r"line 6: 50 numbers, there must be 784; it is cut"),
        (lambda lines: [*lines[:5], lines[5] + " 1", *lines[6:]], r"line 6: 785 numbers, there must be 784"),
        (lambda lines: [*lines[:2], "", *lines[2:]], "line 3: 0 numbers"),
        (lambda lines: [*lines[:2], "\xff" + lines[2][1:], *lines[3:]], "line 3: number 1 is"),
        (lambda lines: [], "empty file"),
    ],
)
def test_bad_text_is_named_by_line(texts: Path, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    path = texts / TEXT.format("valid")
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())), "latin-1")
    said = refusal("mnist", "--source", texts, "--out", tmp_path / "out")
    assert "binarized_mnist_valid.amat" in said
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.full((3, 784), 2)}, "row 1: column 1 is 2, not 0 or 1"),
        ({"X": np.eye(3, 784) / 2}, "row 1: column 1 is 0.5, not 0 or 1"),
        ({"X": np.full((3, 784), np.nan)}, "row 1: column 1 is nan, not 0 or 1; grey images are read from"),
        ({"X": np.eye(3, 784) - 1}, "row 1: column 2 is -1.0, not 0 or 1"),
        ({"X": np.zeros((3, 783))}, "must hold one matrix of 784 columns, holds X (3, 783)"),
        ({"X": np.zeros((3, 784)), "Y": np.zeros((1, 784))}, "must hold one matrix of 784 columns"),
        ({}, "holds nothing"),
    ],
)
def test_bad_matlab_is_named_by_row(texts: Path, tmp_path: Path, content: dict[str, object], message: str) -> None:
    scipy.io.savemat(str(texts / TEXT.format("test")), content, appendmat=False)
    assert message in refusal("mnist", "--source", texts, "--out", tmp_path / "out")


def test_cut_matlab(texts: Path, tmp_path: Path, images: dict[str, Bytes]) -> None:
    path = texts / TEXT.format("test")
    scipy.io.savemat(str(path), {"X": images["test"]}, appendmat=False)
    path.write_bytes(path.read_bytes()[:3000])
    assert "not readable as MATLAB" in refusal("mnist", "--source", texts, "--out", tmp_path / "out")


def test_grey_images_are_drawn_once_and_the_last_are_validation(grey: Path, tmp_path: Path) -> None:
    prepared("mnist", "--source", grey, "--out", tmp_path / "out", "--idx-valid", "10")
    store = Store.open(tmp_path / "out", "always")
    assert [len(store.lengths(split)) for split in store.splits] == [30, 10, 12]
    pixels = np.frombuffer((grey / TRAIN).read_bytes()[16:], np.uint8).reshape(40, 784)
    drawn = np.concatenate([stored(store, "train"), stored(store, "valid")])
    assert not drawn[pixels == 0].any() and drawn[pixels == 255].all()
    rest = (pixels > 0) & (pixels < 255)
    assert drawn[rest].mean() == pytest.approx(pixels[rest].mean() / 255, abs=0.015)
    labels = [store.labels(split) for split in store.splits]
    assert [some.tolist() for some in labels if some is not None] == [
        [i % 10 for i in range(30)],
        [i % 10 for i in range(30, 40)],
        [i % 10 for i in range(12)],
    ]
    config = DataConfig(frame_samples=1, train_view="utterances", global_batch=5)
    loader = TrainLoader(store, config, seed=1, rank=0, world_size=1, accumulation_steps=1, device=torch.device("cpu"))
    (batch,) = loader.batches(0)
    assert batch.labels_B is not None and (batch.labels_B == batch.ids_B % 10).all()


def test_packing_changes_nothing_and_the_seed_does(grey: Path, tmp_path: Path) -> None:
    prepared("mnist", "--source", grey, "--out", tmp_path / "a", "--idx-valid", "10")
    prepared("mnist", "--source", grey, "--out", tmp_path / "c", "--idx-valid", "10", "--binarise-seed", "1")
    for path in list(grey.iterdir()):
        (grey / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    prepared("mnist", "--source", grey, "--out", tmp_path / "b", "--idx-valid", "10")
    a, b, c = (Store.open(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c
    assert "different: binarised" in refusal(
        "mnist", "--source", grey, "--out", tmp_path / "b", "--idx-valid", "10", "--binarise-seed", "1"
    )


def test_the_drawn_pixels_are_frozen() -> None:
    grey = np.arange(2 * 784, dtype=np.uint64).reshape(2, 784) % 256
    drawn = binarised(grey.astype(np.uint8), 7, TRAIN, 0)
    assert drawn.sum() == 781 and drawn[0, 100:132].tolist() == [
        0,
        0,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        1,
        0,
        0,
        1,
        1,
        1,
        1,
        0,
        1,
    ]
    assert (binarised(grey.astype(np.uint8), 7, TEST, 0) != drawn).any()


@given(first=st.integers(0, 59_000), cut=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_a_pixel_does_not_depend_on_what_is_read_with_it(first: int, cut: int, seed: int) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (5, 784), dtype=np.uint8)
    whole = binarised(grey, first, TRAIN, seed)
    parts = [binarised(grey[:cut], first, TRAIN, seed), binarised(grey[cut:], first + cut, TRAIN, seed)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_bad_idx(grey: Path, tmp_path: Path) -> None:
    def said() -> str:
        return refusal("mnist", "--source", grey, "--out", tmp_path / "out", "--idx-valid", "10")

    whole = (grey / TRAIN).read_bytes()
    (grey / TRAIN).write_bytes(whole[:-5])
    assert "train-images-idx3-ubyte: cut short: 5 bytes are missing" in said()
    (grey / TRAIN).write_bytes(whole + b"\0")
    assert "longer than the 40 images that its header promises" in said()
    (grey / TRAIN).write_bytes(whole[:8] + struct.pack(">II", 27, 28) + whole[16:])
    assert "images of 27 x 28, not 28 x 28" in said()
    (grey / TRAIN).write_bytes(whole[:10])
    assert "cut short: 6 bytes are missing" in said()
    (grey / TRAIN).write_bytes(gzip.compress(whole)[:-5000])
    assert "train-images-idx3-ubyte: not readable" in said()
    (grey / TRAIN).write_bytes(whole)
    labels = (grey / TRAIN_LABELS).read_bytes()
    (grey / TRAIN_LABELS).write_bytes(labels[:4] + struct.pack(">I", 39) + labels[8:])
    assert "train-labels-idx1-ubyte: 39 labels for 40 images" in said()


def test_what_is_missing_is_named(grey: Path, texts: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "40 images leave none to train on after --idx-valid 10000" in refusal("mnist", "--source", grey, *out)
    assert "--idx-valid 0: must be at least 1" in refusal("mnist", "--source", grey, *out, "--idx-valid", "0")
    assert "--binarise-seed -1" in refusal("mnist", "--source", grey, *out, "--binarise-seed", "-1")
    (grey / TEST).unlink()
    assert "no file for 't10k'" in refusal("mnist", "--source", grey, *out, "--idx-valid", "10")
    (texts / TEXT.format("valid")).rename(texts / "second_train.amat")
    assert "2 files (binarized_mnist_train.amat, second_train.amat) for 'train'" in refusal(
        "mnist", "--source", texts, *out
    )
    (texts / "second_train.amat").unlink()
    assert "no file for 'valid'" in refusal("mnist", "--source", texts, *out)
    (tmp_path / "empty").mkdir()
    assert "no MNIST in it" in refusal("mnist", "--source", tmp_path / "empty", *out)
    assert "no such folder" in refusal("mnist", "--source", tmp_path / "none", *out)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not beside the checkout")
def test_the_real_files(tmp_path: Path) -> None:
    prepared("mnist", "--source", REAL, "--out", tmp_path / "out")
    splits = Store.open(tmp_path / "out", "always").manifest.splits
    assert {name: split.recordings for name, split in splits.items()} == {
        "train": 50_000,
        "valid": 10_000,
        "test": 10_000,
    }
    means = [round(split.statistics.mean, 6) for split in splits.values()]
    assert means == [0.130562, 0.131127, 0.132512]
