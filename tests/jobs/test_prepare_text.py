"""`jobs.prepare text`: lines, JSON lines, trees and archives; splits, vocabulary, bad lines, and the real archives."""

import json
import multiprocessing
import os
import random
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
from folders import tree
from raw import prepared, refusal

from zfdist.data.kinds import SPECIALS, UNKNOWN
from zfdist.data.sources import text
from zfdist.data.sources.text import Text, unknown_words
from zfdist.data.store import Store

REAL = Path(__file__).parents[3] / "shared" / "data" / "text"
WORDS = ["the", "film", "is", "good", "bad", "very", "not", "a", "plot", "!", "na\u00efve", "<unk>"]


def some_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 19 words, the first ones of WORDS often and rare ones of their own."""
    rng = random.Random(seed)

    def word() -> str:
        return rng.choice(WORDS[: rng.randint(1, len(WORDS))]) if rng.random() < 0.95 else f"rare{rng.randint(0, 50)}"

    return [" ".join(word() for _ in range(rng.randint(3, 19))) for _ in range(count)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.txt"
    path.write_text("\n".join(some_sentences(600)) + "\n\n")
    return path


def written(store: Store) -> dict[str, list[str]]:
    """The sentences of each split, from the ids."""
    words = store.vocabulary()
    found = {}
    for split in store.splits:
        lengths = store.lengths(split)
        rows = store.gather(split, np.arange(len(lengths)), np.zeros(len(lengths), np.int64), int(lengths.max()))
        found[split] = [
            " ".join(words[i] for i in row[:length]) for row, length in zip(rows.tolist(), lengths, strict=True)
        ]
    return found


def test_lines_become_sentences(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("text", "--source", plain, "--out", tmp_path / "out")
    store = Store.open(tmp_path / "out", "always")
    kept = [line for line in some_sentences(600) if 5 <= len(line.split()) <= 16]
    found = written(store)
    # All words of train are known here, and rare ones may be unknown elsewhere; "<unk>" itself is no known word.
    vocabulary = set(store.vocabulary())
    expected = [" ".join(w if w in vocabulary else "<unk>" for w in line.split()) for line in kept]
    assert sorted(s for some in found.values() for s in some) == sorted(expected)
    assert store.vocabulary()[:4] == list(SPECIALS) and store.labels("train") is None
    lines = plain.read_text().split("\n")
    name = store.names("valid")[0]
    assert (
        name.startswith("plain.txt:")
        and " ".join(w if w in vocabulary else "<unk>" for w in lines[int(name.split(":")[1]) - 1].split())
        == found["valid"][0]
    )
    shares = [len(some) / len(kept) for some in found.values()]
    assert shares == pytest.approx([0.85, 0.05, 0.10], abs=0.03)
    said = capsys.readouterr().out
    assert "split     sentences      tokens   covered    <unk>   labels" in said and store.fingerprint in said
    unknown = sum(s.split().count("<unk>") for s in found["train"])
    assert unknown == unknown_words(store, "train") == unknown_words(store, "train", block=7) > 0


def test_the_vocabulary_is_of_the_training_split_by_frequency_then_code_point(plain: Path, tmp_path: Path) -> None:
    prepared("text", "--source", plain, "--out", tmp_path / "out", "--vocab", "20")
    store = Store.open(tmp_path / "out")
    rows = [name.split(":")[1] for name in store.names("train")]
    lines = plain.read_text().split("\n")
    train = [word for row in rows for word in lines[int(row) - 1].split() if word != "<unk>"]
    ranked = sorted(set(train), key=lambda word: (-train.count(word), word))
    assert store.vocabulary() == [*SPECIALS, *ranked[:20]]
    assert store.manifest.source["distinct_words"] == len(ranked) + 1  # "<unk>" is a word of the text
    assert store.manifest.normalisation.mean == 0.0 and store.manifest.normalisation.std == 1.0


def test_the_same_text_gives_the_same_bytes_and_splits_do_not_move(plain: Path, tmp_path: Path) -> None:
    prepared("text", "--source", plain, "--out", tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    moved = plain.rename(tmp_path / "elsewhere" / "plain.txt")
    prepared("text", "--source", moved, "--out", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    more = some_sentences(200, seed=9)
    moved.write_text("\n".join([*more, moved.read_text()]))
    prepared("text", "--source", moved, "--out", tmp_path / "c", "--vocab", "60000")
    before, after = (written(Store.open(tmp_path / name)) for name in "ac")
    lines = {split: {s for s in some if "<unk>" not in s} for split, some in before.items()}
    assert all(lines[split] <= set(after[split]) for split in lines)
    assert not set(after["train"]) & (set(after["test"]) | set(after["valid"])) - {
        s for s in after["train"] if "<unk>" in s
    }
    assert "different: inputs_sha256" in refusal("text", "--source", moved, "--out", tmp_path / "a")


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
    prepared("text", "--source", *zips, "--out", tmp_path / "a", "--test-percent", "40", "--valid-percent", "30")
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
    prepared("text", "--source", folder, "--out", tmp_path / "b", "--test-percent", "40", "--valid-percent", "30")
    assert Store.open(tmp_path / "b").fingerprint == store.fingerprint


def test_json_lines_with_ids_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    objects = [
        {
            "body": "\n".join(some_sentences(3, seed=i)),
            "user": i % 60,
            "stars": [i % 5, "pos", "neg", None, True][i % 5],
        }
        for i in range(200)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in objects))
    fields = ("--text-field", "body", "--review-field", "user", "--label-field", "stars")
    prepared("text", "--source", path, "--out", tmp_path / "out", *fields)
    store = Store.open(tmp_path / "out")
    owners = []
    for split in store.splits:
        labels = store.labels(split)
        assert labels is not None
        rows = [int(name.split(":")[1]) - 1 for name in store.names(split)]
        owners.append({row % 60 for row in rows})
        assert labels.tolist() == [[0, 1, 0, -1, 1][row % 5] for row in rows]
    assert sum(map(len, owners)) == 60 == len(set().union(*owners))


def test_bad_lines_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = [json.dumps({"text": line, "id": i, "y": 1}) for i, line in enumerate(some_sentences(300))]
    bad = ["{", "[1]", '{"body": "x", "id": 3}', '{"text": "a b c d e f"}', '{"text": "a", "id": 1, "y": "so so"}']
    path.write_text("\n".join(good[:2] + bad + good[2:]))
    line = ("text", "--source", path, "--out", tmp_path / "out", "--review-field", "id", "--label-field", "y")
    said = refusal(*line)
    assert "5 lines cannot be used" in said
    for expected in (
        "in.jsonl:3: Expecting property name",
        "in.jsonl:4: not a JSON object; there must be one on each line",
        "in.jsonl:5: no text in field 'text' (--text-field); it has body, id",
        "in.jsonl:6: no id in field 'id' (--review-field)",
        "in.jsonl:7: label 'so so' is neither a whole number >= 0, pos, neg nor null (--label-field)",
    ):
        assert expected in said
    prepared(*line, "--max-bad", "5")
    assert set(Store.open(tmp_path / "out").manifest.source["left_out"]) == {f"in.jsonl:{i}" for i in range(3, 8)}
    path.write_text("{\n" * 5000)
    said = refusal("text", "--source", path, "--out", tmp_path / "other")
    assert "1001 lines cannot be used, reading is given up" in said and "and 951 more" in said


def test_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"pos/1.txt": "a film that is good\n" * 50, "neg/2.txt": "x y z a b\n" * 50})
    content = bytearray(path.read_bytes())
    content[45] ^= 0xFF
    path.write_bytes(content)
    said = refusal("text", "--source", path, "--out", tmp_path / "out")
    assert "a.zip/pos/1.txt: unreadable" in said
    path.write_bytes(content[:100])
    assert "a.zip: not readable as a zip archive" in refusal("text", "--source", path, "--out", tmp_path / "out")


def test_odd_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.txt"
    odd = [
        "\ufeffthe film is na\u00efve and good",
        "the\u00a0film\x85is\u2028very very good",
        "</s> <s> <pad> <unk> the film",
    ]
    lines = [line.encode() for line in odd + some_sentences(300)] + ["a na\u00efve film is good too".encode("latin-1")]
    path.write_bytes(b"\r\n".join(lines))
    prepared("text", "--source", path, "--out", tmp_path / "out")
    assert "1 lines are not UTF-8 and were read as Latin-1" in capsys.readouterr().out
    store = Store.open(tmp_path / "out", "always")
    found = {s for some in written(store).values() for s in some}
    assert {"the film is na\u00efve and good", "the film is very very good"} <= {
        s.replace("<unk>", "and") if s.endswith("<unk> good") else s for s in found
    }
    assert "<unk> <unk> <unk> <unk> the film" in found and "a na\u00efve film is good <unk>" in found | {
        s.replace("too", "<unk>") for s in found
    }
    assert all(word and not word.isspace() for word in store.vocabulary())
    for split in store.splits:
        count = len(store.lengths(split))
        ids = store.gather(split, np.arange(count), np.zeros(count, np.int64), 5)
        assert ids.min() >= UNKNOWN


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--min-tokens", "0"), "--min-tokens 0: must be 1 to"),
        (("--min-tokens", "9", "--max-tokens", "8"), "--min-tokens 9: must not exceed --max-tokens 8"),
        (("--vocab", "65533"), "--vocab 65533: must be 1 to 65532"),
        (("--valid-percent", "50", "--test-percent", "50"), "leave nothing to train on"),
        (("--min-tokens", "100", "--max-tokens", "101"), "split 'train' would be empty: 0 sentences of 100 to 101"),
        (("--test-percent", "0"), "split 'test' would be empty"),
    ],
)
def test_bad_options(plain: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refusal("text", "--source", plain, "--out", tmp_path / "out", *flags)


def test_what_is_no_text_says_so(plain: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "no such file or folder" in refusal("text", "--source", tmp_path / "none", *out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.txt").write_text("no text")
    assert "no .txt, .pos, .neg" in refusal("text", "--source", tmp_path / "empty", *out)
    said = refusal("text", "--source", plain, plain, *out)
    assert "two of the sources have a file 'plain.txt'" in said
    assert "--source names no file" in refusal("text", *out, "--source")


def killed_at(source: Path, out: Path, fsync: int) -> None:
    real, calls = os.fsync, []

    def deadly(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fsync:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = deadly
    text.prepare(Text((source,)), out)


def test_killed_at_any_point_it_goes_on_to_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    plain.write_text("\n".join(some_sentences(200)))
    text.prepare(Text((plain,)), tmp_path / "whole")
    point, outcome = -1, -signal.SIGKILL
    while outcome == -signal.SIGKILL:
        point += 2
        out = tmp_path / f"killed{point}"
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(plain, out, point))
        child.start()
        child.join()
        outcome = child.exitcode or 0
        text.prepare(Text((plain,)), out)
        assert tree(out) == tree(tmp_path / "whole"), f"killed at write {point}"
    assert outcome == 0 and point > 15


@pytest.mark.skipif(not REAL.is_dir(), reason="the real archives are not beside the checkout")
def test_the_real_archives(tmp_path: Path) -> None:
    prepared("text", "--source", REAL, "--out", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    counts: dict[str, int] = {}
    for split in store.splits:
        for name in store.names(split):
            counts[name.split("/")[0]] = counts.get(name.split("/")[0], 0) + 1
    assert counts == {"movie_reviews.zip": 20_446, "sentence_polarity.zip": 3_468, "subjectivity.zip": 2_439}
    assert sum(counts.values()) == 26_353 and len(store.vocabulary()) == 16_004
    reviews = [{n.rpartition(":")[0] for n in store.names(s) if n.endswith(".txt")} for s in store.splits]
    assert sum(map(len, reviews)) == len(set().union(*reviews))
