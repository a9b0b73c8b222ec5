"""Measure speed: `zfdist bench [core | checkpoint | ... | all]`, in a checkout; prints tables.

The benchmarks are the files tests/benchmarks/bench_NAME.py of the checkout. No time is asserted anywhere; that the
rivals compute the same numbers is.
"""

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from jobs.cli import command

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"


@dataclass(frozen=True)
class Arguments:
    """Print what the parts of the system take, against a named rival in the same run: medians and quartiles."""

    section: Annotated[str, tyro.conf.Positional] = "all"
    """Which benchmark, by the name of its file in tests/benchmarks, or all."""
    threads: int = 1
    """CPU threads that torch may use."""
    size: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SIZE ...")] = ()
    """Sizes to measure, e.g. timit demo; default: all but the slowest."""
    repeats: int = 5
    """Repeats of each measurement."""
    compiled: bool = False
    """core: also time the hoisted loop under torch.compile, which takes minutes to compile."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`: the benchmarks in turn, each table as soon as it is ready; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist bench", args=argv)
    names = _chosen(arguments.section)
    command.refuse_below(arguments, threads=1, repeats=1)
    sys.path.insert(0, str(FOLDER))  # the benchmarks share measure.py
    benchmarks = [importlib.import_module(f"bench_{name}") for name in names]
    known = dict.fromkeys(size for benchmark in benchmarks for size in benchmark.SIZES)
    for size in arguments.size:
        if size not in known:
            command.refuse(f"--size {size}: must be one of {', '.join(known)}")
    print(f"{_machine()}, {arguments.threads} threads\n", flush=True)
    for benchmark in benchmarks:
        for table in _tables(benchmark, arguments):
            _print(table)


def _chosen(section: str) -> list[str]:
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    if not names:
        command.refuse(f"{FOLDER} is not there: benchmarks are not installed, run this in a checkout of the project")
    if section not in (*names, "all"):
        command.refuse(f"{section!r} is not a benchmark; there are {', '.join(names)} and all")
    return names if section == "all" else [section]


def _tables(benchmark: ModuleType, arguments: Arguments) -> Iterator[Any]:
    """Run one benchmark; one that knows none of the sizes asked for has its own default."""
    sizes = [size for size in arguments.size if size in benchmark.SIZES]
    options = importlib.import_module("measure").Options(
        arguments.threads, sizes, arguments.repeats, arguments.compiled
    )
    yield from benchmark.tables(options)


def _print(table: Any) -> None:
    from rich.table import Table

    from jobs.cli.screen import Screen

    drawn = Table(title=table.title, title_justify="left", title_style="bold")
    for i, column in enumerate(table.header):
        drawn.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console = Screen(140)
    console.print(drawn)
    for note in table.notes:
        console.print(f"  {note}", markup=False, highlight=False)
    console.print()


def _machine() -> str:
    """Name what a figure depends on: processor, how busy it is, and versions."""
    from importlib.metadata import version

    from zfdist.container import cpus

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    busy = f"{cpus()} CPUs with a load of {os.getloadavg()[0]:.1f}"
    return f"{processor}, {busy}, Python {platform.python_version()}, torch {version('torch')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
