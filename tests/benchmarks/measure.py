"""How benchmarks measure and what they give back: a `Table` for `zfdist bench` to print.

A benchmark is a file bench_NAME.py here with `SIZES`, the sizes it knows, and `tables(options) -> Iterator[Table]`.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Options(NamedTuple):
    """What the command line asked for."""

    threads: int
    sizes: Sequence[str]  # empty: the benchmark's default
    repeats: int
    compiled: bool = False  # also rivals that take minutes to compile


class Table(NamedTuple):
    """One table: the first row is the rival that the others are compared with."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


class Timing(NamedTuple):
    """Seconds of all repeats: the median and quartiles of the clock's, and the least of the processor's.

    The last is what a quiet machine would take, also where others are at work; it sums over threads.
    """

    median: float
    low: float
    high: float
    least_cpu: float

    def ms(self) -> str:
        """Return the median in ms with its quartiles."""
        return f"{self.median * 1e3:.4g} ({self.low * 1e3:.4g} .. {self.high * 1e3:.4g})"


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time all candidates in turn, `repeats` times after a warm-up, so that a busy minute hits them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(repeats + 1):
        for name, candidate in candidates.items():
            gc.collect()
            start, cpu_start = time.perf_counter(), time.process_time()
            candidate()
            if run > 0:
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
    return {name: _timing(seconds[name], cpu_seconds[name]) for name in candidates}


def _timing(values: list[float], cpu_values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(median, low, high, min(cpu_values))
