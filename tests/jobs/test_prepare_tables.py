"""`zfdist prepare text` on tables (CSV, TSV, Parquet) of which columns are named, and labels as they are."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import prepared, refusal
from words_of import some_sentences

from zfdist.data.sources.decoding import Oddities, lines_of
from zfdist.data.sources.rows import Fields, Labels, of_table
from zfdist.data.store import Store

LINES = some_sentences(200)
COLUMNS = ("--text-column", "review", "--label-column", "sentiment")
SHARES = ("--valid-percent", "20", "--test-percent", "20")


def table(delimiter: str = ",", end: str = "\r\n", **options: object) -> str:
    """Reviews of two lines each, with quotes, delimiters and ends of lines in the cells."""
    made = io.StringIO()
    writer = csv.writer(made, delimiter=delimiter, lineterminator=end, **options)  # type: ignore[arg-type]
    writer.writerow(["id", "review", "sentiment"])
    for i, line in enumerate(LINES):
        text = f'"{line}" he said, or so;\tit is{end}{line}'
        writer.writerow([f"{i}_9", text, ("negative", "positive")[i % 2]])
    return made.getvalue()


def store_of(tmp_path: Path, name: str, content: str | bytes, *flags: str) -> Store:
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(raw)
    out = tmp_path / f"{name}.out"
    prepared("text", "--source", tmp_path / name, "--out", out, *SHARES, *(flags or COLUMNS), "--max-tokens", "40")
    return Store.open(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("plain"), "a.csv", table())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", table(end="\n")),
        ("a.csv", table(end="\r")),
        ("a.csv", "\ufeff" + table(";")),
        ("a.tsv", table("\t", end="\n", quoting=csv.QUOTE_ALL)),
        ("a.tab", table("\t", doublequote=False, escapechar="\\")),
        ("a.csv", "\n" + table("|").replace("\n", "\n\n", 1)),
        ("a.csv", table().encode("utf-16")),
        (
            "a.jsonl",
            "".join(
                json.dumps({"review": f'"{line}" he said, or so;\tit is\n{line}', "sentiment": i % 2}) + "\n"
                for i, line in enumerate(LINES)
            ),
        ),
    ],
)
def test_the_same_reviews_in_other_tables(tmp_path: Path, plain: Store, name: str, content: str | bytes) -> None:
    assert store_of(tmp_path, name, content).fingerprint == plain.fingerprint


def test_columns_of_parquet(tmp_path: Path, plain: Store) -> None:
    reviews = [f'"{line}" he said, or so;\tit is\n{line}' for line in LINES]
    labels = [float(i % 2) for i in range(len(LINES))]
    made = io.BytesIO()
    pa.parquet.write_table(pa.table({"review": reviews, "sentiment": labels, "other": [{"a": 1}] * len(LINES)}), made)
    assert store_of(tmp_path, "train-00000-of-00001.parquet", made.getvalue()).fingerprint == plain.fingerprint
    path = tmp_path / "damaged.parquet"
    path.write_bytes(made.getvalue()[:-50])
    line = ("text", "--source", path, "--out", tmp_path / "out")
    assert "damaged.parquet: unreadable" in refusal(*line, *COLUMNS)
    path.write_bytes(made.getvalue())
    assert "a table with the columns review, sentiment, other; name that" in refusal(*line)
    assert "no column 'text' (--text-column)" in refusal(*line, "--text-column", "text")


def test_what_tables_were_taken_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["4", "4.0", "0", "pos", "NEGATIVE", "", " 1 ", "True"]
    rows = [f'"{line}","{labels[i % 7]}"' for i, line in enumerate(LINES)]
    store = store_of(tmp_path, "a.csv", "review,sentiment\n" + "\n".join(rows) + "\n")
    for split in store.splits:
        found = store.labels(split)
        assert found is not None
        at = [int(name.split(":")[1]) - 2 for name in store.names(split)]
        assert found.tolist() == [[4, 4, 0, 1, 0, -1, 1][i % 7] for i in at]
    said = capsys.readouterr().out
    assert "labels: '0' is 0, 'NEGATIVE' is 0, ' 1 ' is 1, 'pos' is 1, '4' is 4, '4.0' is 4" in said
    assert "28 rows have no label, the first is a.csv:7; theirs is unknown (-1)" in said


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("review,sentiment\na b c d e,-1\n", COLUMNS, "a.csv:2: label '-1' is neither a whole number >= 0"),
        ("review,sentiment\na b c d e,4.5\n", COLUMNS, "a.csv:2: label '4.5' is neither"),
        ("review,sentiment\na b c d e,nan\n", COLUMNS, "a.csv:2: label 'nan' is neither"),
        ("review,sentiment\na, b c d e,1\n", COLUMNS, "a.csv:2: 3 cells, the header has 2; check its quotes"),
        ('review,sentiment\n"a "b" c d e",1\n', COLUMNS, "a.csv:2: not readable as a row of a table"),
        ('review,sentiment\na b c d e,1\n"a b c,1\na b\n', COLUMNS, "a.csv:3: not readable as a row of a table"),
        ("review,sentiment\na b c d e,\n", COLUMNS, "--label-field sentiment: no row of the sources has a label"),
        (
            "review,sentiment\na b c d e,1\n",
            ("--text-column", "Review"),
            "no column 'Review' (--text-column); its first",
        ),
        ("review,review\na b c d e,1\n", COLUMNS, "2 column 'review'"),
        ("review\na b c d e\n", (*COLUMNS[:2], "--review-column", "id"), "no column 'id' (--review-column)"),
        ("review\na b c d e\n", (), "a table with the columns review; name that of the text by --text-column"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, flags: tuple[str, ...], message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert message in refusal("text", "--source", tmp_path / "a.csv", "--out", tmp_path / "out", *flags)


def test_fields_without_rows_and_arrays_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    line = ("text", "--source", tmp_path / "a.txt", "--out", tmp_path / "out")
    assert "--text-field review: among the sources is no" in refusal(*line, *COLUMNS)
    (tmp_path / "a.json").write_text(json.dumps([{"text": line} for line in LINES], indent=1))
    said = refusal("text", "--source", tmp_path / "a.json", "--out", tmp_path / "out")
    assert "a.json: an array of JSON; there must be an object on each line" in said


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=9)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=9), st.sampled_from(",;\t|"))
@settings(deadline=None)
def test_cells_come_back_as_they_were_written(cells: list[tuple[str, str]], delimiter: str) -> None:
    made = io.StringIO()
    csv.writer(made, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("t", "y"), *cells])
    lines = lines_of(io.BytesIO(made.getvalue().encode()), "utf-8", Oddities())
    rows = list(of_table("a.csv", '"t"' + delimiter + '"y"\n""', lines, Fields("t", "", "y")))
    assert [(row.values["t"], row.values["y"]) for row in rows] == cells and not any(row.problem for row in rows)


@given(st.integers(0, 2**31 - 1))
def test_a_label_is_the_same_number_however_it_is_written(number: int) -> None:
    labels = Labels()
    written: list[object] = [number, float(number), str(number), f" {number}.0 ", f"{number:.3f}"]
    assert {labels.of(value, "row", "--label-field") for value in written} == {number} and not labels.unlabelled
    assert labels.of(float("nan"), "row 7", "") == -1 == labels.of(None, "row 8", "")
    assert (labels.unlabelled, labels.first_unlabelled) == (2, "row 7")
