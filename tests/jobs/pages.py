"""How tests read a report: its tables, and the size of its pictures."""

from pathlib import Path


def table_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = page.split(f"## {heading}\n", 1)[1].splitlines()
    rows = [line for line in lines[: lines.index("", 3 + next(i for i, x in enumerate(lines) if x[:1] == "|"))] if line]
    return [[cell.strip(" *`") for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")][2:]


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
