"""`zfdist prepare text`: lines and JSON lines; splits, vocabulary, bad lines, kill -9."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from folders import tree
from raw import prepared, refusal
from words_of import some_sentences

from zfdist.data.as_trained import unknown_words
from zfdist.data.kinds import SPECIALS, UNKNOWN
from zfdist.data.sources import text
from zfdist.data.sources.text import Text
from zfdist.data.store import Store


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
    kept = [line for line in some_sentences(600) if 1 <= len(line.split()) <= 15]
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
    assert "1001 lines cannot be used, reading is given up" in said
    assert said.count("Expecting property name") == 1 and "in.jsonl:1, in.jsonl:2, in.jsonl:3 and 998 more: " in said


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


def test_the_one_text_of_a_folder_is_lines_and_of_several_each_is_a_review(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(some_sentences(300)))
    prepared("text", "--source", folder, "--out", tmp_path / "out")
    assert all(len(Store.open(tmp_path / "out").lengths(split)) for split in ("train", "valid", "test"))
    (folder / "b.txt").write_text("\n".join(some_sentences(50)))
    said = refusal("text", "--source", folder, "--out", tmp_path / "out2")
    assert "(each of the 2 .txt files is a review, which stays whole)" in said


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
