"""Rows with named fields: lines of JSON, tables with a header (CSV, TSV), Parquet files; text, review and label."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zfdist.data.kinds import NO_LABEL
from zfdist.data.sources.decoding import MOST_CHARACTERS, TextLine
from zfdist.data.sources.inputs import SourceError

POLARITY = {"neg": 0, "negative": 0, "pos": 1, "positive": 1}
JSON_TEXT = "text"
"""The field of a line of JSON that holds the text if none is named."""
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a JSON line, or of the columns of a table; "" for none."""

    text: str = ""
    review: str = ""
    label: str = ""


class Row(NamedTuple):
    """A row: the line or row where it begins, from 1, and what it holds; or why it cannot be used."""

    number: int
    values: Mapping[str, Any]
    problem: str = ""


@dataclass
class Labels:
    """Which values were met as labels, and what they were taken for."""

    seen: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    first_unlabelled: str = ""

    def of(self, value: Any, name: str, flag: str) -> int:
        """Return the label that a value of the row `name` means; raises ValueError if it means none.

        A whole number >= 0, written as 4, 4.0 or "4"; true, false; pos, positive, neg, negative in any case. Quotes
        around it, which a table may have kept, say nothing. Nothing (null, an empty cell): unknown.
        """
        text = value.strip().strip("\"'").strip().lower() if isinstance(value, str) else value
        if text is None or text == "" or text != text:
            self.unlabelled += 1
            self.first_unlabelled = self.first_unlabelled or name
            return NO_LABEL
        try:
            number = POLARITY[text] if text in POLARITY else float(text)
        except (TypeError, ValueError):
            number = NO_LABEL
        if not (0 <= number < 1 << 31 and number == int(number)):
            raise ValueError(f"label {value!r} is neither a whole number >= 0, pos, neg nor null ({flag})")
        self.seen[str(value)] = int(number)
        return int(number)


class Parts(NamedTuple):
    """What a row says."""

    review: str | None
    label: int
    lines: list[str]


def parts(row: Row, name: str, fields: Fields, labels: Labels) -> Parts:
    """Return review, label and lines of text of a row; raises ValueError naming the field that is missing or odd."""
    values = row.values
    field_name = fields.text or JSON_TEXT
    text = values.get(field_name)
    if not isinstance(text, str):
        raise ValueError(
            f"no text in field {field_name!r} (--text-field); it has {', '.join(sorted(map(str, values)))}"
        )
    review = None
    if fields.review:
        if not isinstance(values.get(fields.review), str | int):
            raise ValueError(f"no id in field {fields.review!r} (--review-field)")
        review = str(values[fields.review])
    label = labels.of(values.get(fields.label), name, "--label-field") if fields.label else NO_LABEL
    # A lone surrogate is legal in JSON and not in UTF-8.
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    lines = clean.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Parts(review, label, [line for line in lines if line.strip()])


def is_json(line: str) -> bool:
    """Tell whether a line is an object of JSON."""
    try:
        return line.lstrip()[:1] == "{" and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def of_json(lines: Iterable[TextLine]) -> Iterator[Row]:
    """Read an object from each line."""
    for line in lines:
        if not line.text.strip() and not line.problem:
            continue
        problem = line.problem
        tree: Any = {}
        try:
            if line.is_latin1:
                raise ValueError("not UTF-8")
            tree = {} if problem else json.loads(line.text)
            if not isinstance(tree, dict):
                raise ValueError("not a JSON object; there must be one on each line")
        except (ValueError, RecursionError) as error:
            problem = str(error)
        yield Row(line.number, {} if problem else tree, problem)


def of_table(name: str, head: str, lines: Iterable[TextLine], fields: Fields) -> Iterator[Row]:
    """Read the rows of a table, the first of which names the columns; cells in quotes may hold ends of lines.

    The delimiter is that of , ; tab and | which the header has most of. A quote in a cell is doubled, or has a
    backslash before it if `head`, the beginning of the table, has more of those. Raises SourceError if a column that
    is wanted is not there.
    """
    at = [0]
    problems: dict[int, str] = {}

    def texts() -> Iterator[str]:
        for line in lines:
            at[0] = line.number
            if line.problem:
                problems[line.number] = line.problem
            yield line.text + "\n"

    first = head.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    is_escaped = head.count('\\"') > head.count('""')
    csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.reader(
        texts(),
        delimiter=delimiter,
        doublequote=not is_escaped,
        escapechar="\\" if is_escaped else None,
        skipinitialspace=delimiter == ",",
        strict=True,
    )
    columns: list[str] | None = None
    while True:
        start = at[0] + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(start, {}, f"not readable as a row of a table ({error}); check its quotes")
            continue
        if columns is None and cells:
            columns = _columns(name, [cell.strip() for cell in cells], fields)
            continue
        problem = next((problems.pop(number) for number in list(problems)), "")
        if cells and columns is not None and len(cells) != len(columns):
            problem = problem or f"{len(cells)} cells, the header has {len(columns)}; check its quotes"
        if (cells or problem) and columns is not None:
            yield Row(start, {} if problem else dict(zip(columns, cells, strict=True)), problem)


def _columns(name: str, columns: list[str], fields: Fields) -> list[str]:
    """Return the columns of a table; raises SourceError if the wanted ones are not among them."""
    found = ", ".join(columns[:30])
    if not fields.text:
        raise SourceError(f"{name}: a table with the columns {found}; name that of the text by --text-column")
    for flag, column in (("text", fields.text), ("review", fields.review), ("label", fields.label)):
        if column and columns.count(column) != 1:
            raise SourceError(
                f"{name}: {columns.count(column) or 'no'} column {column!r} (--{flag}-column); its first line must "
                f"name the columns, and has {found}"
            )
    return columns


def of_parquet(path: Path, name: str, fields: Fields) -> Iterator[Row]:
    """Read the wanted columns of a Parquet file.

    Raises SourceError if one is not there, OSError or ValueError if the file is damaged.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        _columns(name, file.schema_arrow.names, fields)
        wanted = [column for column in (fields.text, fields.review, fields.label) if column]
        batches = file.iter_batches(batch_size=1024, columns=wanted)
        for number, values in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield Row(number, values)
