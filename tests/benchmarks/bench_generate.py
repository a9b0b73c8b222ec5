"""Generation, a step at a time: ms of a step by who makes the products of the cell, and those of the nets around it.

The rival is torch with its default products. All share weights and noise, run in turn in one process and give the same
sequences; that weights are packed once for all steps is part of the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from measure import Options, Table, Timing, interleaved
from torch import Tensor

from zfdist.config import Config
from zfdist.model.kernels import cpp_lstm_step
from zfdist.model.kernels.matmul_backend import through_onednn
from zfdist.model.systems import build
from zfdist.recipes import RECIPES

STEPS = 80  # a second of sound
BATCHES = (1, 32)
SYSTEMS = ("zforcing", "rnn")
MOST_ERROR = 1e-4  # of the sequences, relative
SMALL = {"model.hidden": 64, "model.z_dim": 16, "model.mlp_dim": 32}
SIZES: dict[str, Callable[[], Config]] = {
    "timit": RECIPES["timit"],
    "demo": RECIPES["demo"],
    "hidden64": lambda: Config().with_values(SMALL),
}


class Candidate(NamedTuple):
    """One row: whether the cell is C++, and whether torch's products go to oneDNN."""

    native: bool
    onednn: bool


RIVAL = "torch"
CANDIDATES = {
    RIVAL: Candidate(native=False, onednn=False),
    "torch, products by oneDNN": Candidate(native=False, onednn=True),
    "cell in C++": Candidate(native=True, onednn=False),
    "cell in C++, other products by oneDNN": Candidate(native=True, onednn=True),
}


class Case:
    """A network with initial weights, and noise for a batch of sequences."""

    def __init__(self, config: Config, system: str, batch: int) -> None:
        model = config.with_values({"model.system": system}).model
        self.model = build(model, config.data.frame_samples, seed=1)
        generator = torch.Generator().manual_seed(0)
        widths = (model.z_dim, self.model.noise_dim)
        self.noise = [torch.randn(STEPS, batch, width, generator=generator) for width in widths]

    @torch.no_grad()
    def generate(self, candidate: Candidate) -> Tensor:
        with _cell(candidate.native), through_onednn() if candidate.onednn else nullcontext():
            return self.model.generate(*self.noise).x_TBX


@contextmanager
def _cell(native: bool) -> Iterator[None]:
    """Run the cell in C++ always, or never."""
    before = cpp_lstm_step.LEAST_STEPS
    cpp_lstm_step.LEAST_STEPS = 1 if native else STEPS + 1
    try:
        yield
    finally:
        cpp_lstm_step.LEAST_STEPS = before


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size and system."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for size in options.sizes or SIZES:
        for system in SYSTEMS:
            yield _table(size, SIZES[size](), system, options.repeats)


def _table(size: str, config: Config, system: str, repeats: int) -> Table:
    rows = []
    for batch in BATCHES:
        case = Case(config, system, batch)
        _assert_equal(case)
        timings = interleaved({name: partial(case.generate, c) for name, c in CANDIDATES.items()}, repeats)
        rows += [_row(f"{name}, {batch} at a time", timing, timings[RIVAL]) for name, timing in timings.items()]
    m = config.model
    return Table(
        f"generate, {size}: {system}, hidden {m.hidden}, z {m.z_dim}, mlp {m.mlp_dim}, {STEPS} steps",
        ("one step", "ms (quartiles)", "CPU ms", "x torch"),
        rows,
        ("CPU ms, x: least processor time, and torch's over it: other work delays these less",),
    )


def _row(name: str, timing: Timing, rival: Timing) -> tuple[str, ...]:
    step = Timing(*(seconds / STEPS for seconds in timing))
    return name, step.ms(), f"{step.least_cpu * 1e3:.4g}", f"{rival.least_cpu / timing.least_cpu:.2f}"


def _assert_equal(case: Case) -> None:
    expected = case.generate(CANDIDATES[RIVAL])
    for name, candidate in CANDIDATES.items():
        error = float((case.generate(candidate) - expected).norm() / expected.norm())
        if not error <= MOST_ERROR:
            raise AssertionError(f"{name}: sequences off by {error:.1e}")
