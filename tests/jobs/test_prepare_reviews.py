"""`zfdist prepare text` on trees and archives of reviews: made ones, damaged ones, and the real ones where they are."""

import zipfile
from pathlib import Path

import pytest
from raw import prepared, refusal
from words_of import some_sentences

from zfdist.data.store import Store

REAL = Path(__file__).parents[3] / "shared" / "data" / "text"

LENGTHS = ("--min-tokens", "5", "--max-tokens", "16")


def review_tree(root: Path) -> Path:
    """The layout of the large movie review set: train/pos/0_9.txt and so on, and files that are no reviews."""
    for i in range(120):
        path = root / ("train", "test")[i % 2] / ("pos", "neg", "unsup")[i % 3] / f"{i}_7.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(some_sentences(4, seed=i)))
    (root / "train" / "urls_pos.txt").write_text("http : / / no sentence of a review\n" * 9)
    (root / "README.txt").write_text("what this is all about\n" * 9)
    (root / ".hidden.txt").write_text("not to be seen by anybody\n" * 9)
    return root


def test_a_tree_of_reviews(tmp_path: Path) -> None:
    prepared("text", "--source", review_tree(tmp_path / "in"), "--out", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    owners = []
    for split in store.splits:
        labels = store.labels(split)
        assert labels is not None
        names = store.names(split)
        owners.append({name.rpartition(":")[0] for name in names})
        for name, label in zip(names, labels.tolist(), strict=True):
            assert label == {"pos": 1, "neg": 0, "unsup": -1}[name.split("/")[1]]
    assert sum(map(len, owners)) == len(set().union(*owners)) > 100
    assert all(name.endswith("_7.txt") for name in set().union(*owners))


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def test_archives_of_the_known_layouts(tmp_path: Path) -> None:
    lines = "\n".join(some_sentences(100, seed=1)) + "\n"
    other = "\n".join(some_sentences(100, seed=2)) + "\n"
    archive(
        tmp_path / "movie_reviews.zip",
        {
            "movie_reviews/README": "none",
            "movie_reviews/pos/cv0.txt": lines,
            "movie_reviews/neg/cv1.txt": other,
            "__MACOSX/movie_reviews/pos/cv0.txt": "none",
        },
    )
    archive(tmp_path / "sentence_polarity.zip", {"s/rt-polarity.pos": lines, "s/rt-polarity.neg": other})
    archive(tmp_path / "subjectivity.zip", {"s/plot.tok.gt9.5000": lines, "s/README.txt": "none"})
    zips = sorted(tmp_path.glob("*.zip"))
    shares = ("--test-percent", "40", "--valid-percent", "30")
    prepared("text", "--source", *zips, "--out", tmp_path / "a", *LENGTHS, *shares)
    store = Store.open(tmp_path / "a")
    found: dict[tuple[str, int], int] = {}
    reviews = set()
    for split in store.splits:
        labels = store.labels(split)
        assert labels is not None
        for name, label in zip(store.names(split), labels.tolist(), strict=True):
            file = name.rpartition(":")[0]
            found[file, label] = found.get((file, label), 0) + 1
            reviews |= {(file, split)} if file.endswith(".txt") else set()
    kept = [sum(5 <= len(s.split()) <= 16 for s in some.splitlines()) for some in (lines, other)]
    assert found == {
        ("movie_reviews.zip/movie_reviews/neg/cv1.txt", 0): kept[1],
        ("movie_reviews.zip/movie_reviews/pos/cv0.txt", 1): kept[0],
        ("sentence_polarity.zip/s/rt-polarity.neg", 0): kept[1],
        ("sentence_polarity.zip/s/rt-polarity.pos", 1): kept[0],
        ("subjectivity.zip/s/plot.tok.gt9.5000", -1): kept[0],
    }
    assert len(reviews) == 2  # a review is in one split
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in zips:
        path.rename(folder / path.name)
    prepared("text", "--source", folder, "--out", tmp_path / "b", *LENGTHS, *shares)
    assert Store.open(tmp_path / "b").fingerprint == store.fingerprint


def test_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"pos/1.txt": "a film that is good\n" * 50, "neg/2.txt": "x y z a b\n" * 50})
    content = bytearray(path.read_bytes())
    content[45] ^= 0xFF
    path.write_bytes(content)
    said = refusal("text", "--source", path, "--out", tmp_path / "out")
    assert "a.zip/pos/1.txt: unreadable" in said
    path.write_bytes(content[:100])
    assert "a.zip: not readable as a zip archive" in refusal("text", "--source", path, "--out", tmp_path / "out")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real archives are not beside the checkout")
def test_the_real_archives(tmp_path: Path) -> None:
    prepared("text", "--source", REAL, "--out", tmp_path / "out", *LENGTHS)
    store = Store.open(tmp_path / "out")
    counts: dict[str, int] = {}
    for split in store.splits:
        for name in store.names(split):
            counts[name.split("/")[0]] = counts.get(name.split("/")[0], 0) + 1
    assert counts == {"movie_reviews.zip": 20_446, "sentence_polarity.zip": 3_468, "subjectivity.zip": 2_439}
    assert sum(counts.values()) == 26_353 and len(store.vocabulary()) == 16_004
    reviews = [{n.rpartition(":")[0] for n in store.names(s) if n.endswith(".txt")} for s in store.splits]
    assert sum(map(len, reviews)) == len(set().union(*reviews))
