"""A training step of the network by every implementation of its loop: forward, backward, and the whole update.

The rival is the naive loop as published (published_loop.py); the lower bound is nn.LSTM of the same width over the
same steps, which has no latents. All share weights, data and noise, and run in turn in one process. The error of each
gradient is taken against the naive loop in float64, in the very configuration that is timed.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from measure import Options, Table
from published_loop import published_terms
from torch import Tensor, nn

from jobs.recipes import RECIPES
from zfdist import seeding
from zfdist.config import Config
from zfdist.memory import freed_is_kept
from zfdist.model.objective import objective
from zfdist.model.products import through_onednn
from zfdist.model.systems import build
from zfdist.model.terms import Terms
from zfdist.schedule import Weights

WEIGHTS = Weights(kl=0.5, alpha=0.005, beta=0.005, free_nats_per_frame=0.0)
NAIVE, LSTM = "naive loop, as published", "nn.LSTM without latents"
WORDS = 16_000
UNTIL_KEPT = 5  # updates until nothing more is asked of the kernel
MOST_ERROR = 1e-4  # of a gradient, relative; all that is timed must be as good


class Candidate(NamedTuple):
    """One row: an implementation of the loop, whether products go to oneDNN, Adam in one pass, freed memory kept."""

    name: str
    implementation: str
    onednn: bool = False
    fused_adam: bool = True
    kept: bool = False


CANDIDATES = (
    Candidate(NAIVE, "", fused_adam=False),
    Candidate("hoisted loop, autograd", "reference", fused_adam=False),
    Candidate("bptt", "bptt"),
    Candidate("bptt, products by oneDNN", "bptt", onednn=True),
    Candidate("native", "native"),
    Candidate("native, products by oneDNN", "native", onednn=True),
    Candidate("the same, freed memory kept", "native", onednn=True, kept=True),
)


def _small(hidden: int) -> Config:
    sizes = {"model.hidden": hidden, "model.z_dim": hidden // 4, "model.mlp_dim": hidden // 2}
    return Config().with_values({**sizes, "data.global_batch": 32})


SIZES: dict[str, Callable[[], Config]] = {
    "timit": RECIPES["timit"],
    "imdb": RECIPES["imdb"],
    "demo": RECIPES["demo"],
    "hidden64": lambda: _small(64),
    "hidden32": lambda: _small(32),
    "hidden16": lambda: _small(16),
    "blizzard": RECIPES["blizzard"],
}
DEFAULT = ("timit", "imdb", "hidden64", "hidden32", "hidden16")


class Case:
    """One size: a network, a batch of full sequences, and its noise."""

    def __init__(self, config: Config) -> None:
        self.config = config
        words = config.model.density == "categorical"
        self.steps, self.batch = (16 if words else config.data.segment_frames), config.data.global_batch
        self.x_dim = WORDS if words else config.data.frame_samples
        self.model = build(config.model, self.x_dim, seed=1)
        generator = torch.Generator().manual_seed(0)
        if words:
            seen = torch.randint(WORDS, (self.steps + 1, self.batch), generator=generator)
        else:
            seen = torch.randn(self.steps + 1, self.batch, self.x_dim, generator=generator)
        self.x_TBX, self.y_TBX = seen[:-1], seen[1:]
        self.lengths_B = torch.full((self.batch,), self.steps)
        self.mask_TB = torch.ones(self.steps, self.batch, dtype=torch.bool)
        key = seeding.key(0, "bench")
        self.eps_TBZ = seeding.normals(key, torch.arange(self.batch), self.steps, config.model.z_dim)

    def loss(self, implementation: str) -> Tensor:
        return objective(self._terms(implementation), self.mask_TB, WEIGHTS, self.batch).total

    def _terms(self, implementation: str) -> Terms:
        if not implementation:
            return published_terms(self.model, self.x_TBX, self.y_TBX, self.eps_TBZ)
        self.model.recurrence.implementation = implementation
        return self.model(self.x_TBX, self.y_TBX, self.lengths_B, self.eps_TBZ)

    def gradient(self, candidate: Candidate) -> Tensor:
        self.model.zero_grad()
        with through_onednn() if candidate.onednn else nullcontext():
            self.loss(candidate.implementation).backward()
        return torch.cat([p.grad.flatten().double() for p in self.model.parameters()])

    def exact_gradient(self) -> Tensor:
        """Return the naive loop's gradient in float64, with the weights, data and noise of float32."""
        saved = self.x_TBX, self.y_TBX, self.eps_TBZ
        self.model.double()
        self.x_TBX, self.y_TBX, self.eps_TBZ = (v.double() if v.is_floating_point() else v for v in saved)
        exact = self.gradient(CANDIDATES[0])
        self.model.float()
        self.x_TBX, self.y_TBX, self.eps_TBZ = saved
        return exact

    def gflop(self) -> float:
        """Return the operations of forward and backward pass: of products only, and none that is not needed."""
        m, heads = self.config.model, 0
        embedded = m.embed_dim or self.x_dim
        outputs = self.x_dim if m.density == "categorical" else 2 * self.x_dim
        core = m.hidden * (4 * m.hidden + m.mlp_dim) + m.z_dim * 4 * m.hidden + m.mlp_dim * 2 * m.z_dim
        before = embedded * 4 * m.hidden * 2 + 4 * m.hidden**2 + m.hidden * m.mlp_dim
        heads += m.hidden * m.mlp_dim + m.mlp_dim * 2 * m.z_dim + m.z_dim * m.mlp_dim + m.mlp_dim * 2 * m.hidden
        heads += 2 * (m.output_layers * m.hidden * m.mlp_dim + (m.mlp_dim if m.output_layers else m.hidden) * outputs)
        return 6e-9 * self.steps * self.batch * (core + before + heads)


class Laps(NamedTuple):
    """Seconds to the end of the forward pass, of the backward pass and of the update, for all repeats."""

    wall: list[tuple[float, ...]]
    cpu: list[tuple[float, ...]]

    def ms(self, lap: int) -> str:
        """Return the median of the clock's in ms, with quartiles."""
        values = [row[lap] for row in self.wall]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return f"{middle * 1e3:.4g} ({low * 1e3:.4g} .. {high * 1e3:.4g})"

    def least_cpu(self, lap: int) -> float:
        """Return the least of the processor's, which a busy machine lengthens less."""
        return min(row[lap] for row in self.cpu)


Step = Callable[[], Laps]


def _stepper(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], candidate: Candidate) -> Step:
    """Return a function that makes one update and takes the time three times."""
    adam = torch.optim.Adam(parameters, lr=0.0, eps=1e-5, fused=candidate.fused_adam)

    def update() -> Laps:
        gc.collect()
        marks = [(time.perf_counter(), time.process_time())]
        with through_onednn() if candidate.onednn else nullcontext():
            adam.zero_grad()
            value = loss()
            marks.append((time.perf_counter(), time.process_time()))
            value.backward()
            marks.append((time.perf_counter(), time.process_time()))
            nn.utils.clip_grad_norm_(parameters, 100.0)
            adam.step()
            marks.append((time.perf_counter(), time.process_time()))
        wall, cpu = (tuple(mark[i] - marks[0][i] for mark in marks[1:]) for i in (0, 1))
        return Laps([wall], [cpu])

    def kept() -> Laps:
        with freed_is_kept():
            for _ in range(UNTIL_KEPT):
                update()
            return update()

    return kept if candidate.kept else update


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for size in options.sizes or DEFAULT:
        yield _table(size, Case(SIZES[size]()), options)


def _table(size: str, case: Case, options: Options) -> Table:
    errors = _errors(case)
    parameters = list(case.model.parameters())
    steps = {c.name: _stepper(parameters, lambda c=c: case.loss(c.implementation), c) for c in CANDIDATES}
    notes = ()
    if options.compiled:
        name = "hoisted loop, torch.compile"
        compiled = torch.compile(lambda: case.loss("reference"))
        steps[name] = _stepper(parameters, compiled, Candidate(name, "reference", fused_adam=False))
        started = time.perf_counter()
        steps[name]()
        notes = (f"torch.compile took {time.perf_counter() - started:.0f} s, which its row leaves out",)
    steps[LSTM], lstm_gflop = _lstm(case)
    laps = _interleaved(steps, options.repeats)
    memory = {name: _peak_mib(step) for name, step in steps.items()}
    gflop = dict.fromkeys(steps, case.gflop()) | {LSTM: lstm_gflop}
    m = case.config.model
    return Table(
        f"core, {size}: hidden {m.hidden}, z {m.z_dim}, mlp {m.mlp_dim}, {case.steps} steps x {case.batch} sequences",
        ("one update", "forward ms", "+ backward ms", "+ clip and Adam, ms (quartiles)", "CPU ms", "x naive",
         "GFLOP/s", "MiB", "gradient error"),
        [_row(n, laps[n], laps[NAIVE], gflop[n], memory[n], errors.get(n)) for n in steps] + [_floor(case)],
        (
            "CPU ms, x: least processor time of the update, and the naive loop's over it: other work delays these less",
            "GFLOP/s: forward and backward, by least processor time. MiB: peak of an update beyond weights and moments",
            f"gradient error: over all parameters, relative to float64; more than {MOST_ERROR:.0e} is refused",
            *notes,
        ),
    )  # fmt: skip


def _row(name: str, laps: Laps, naive: Laps, gflop: float, mib: float, error: float | None) -> tuple[str, ...]:
    forward, backward = (statistics.median(row[lap] for row in laps.wall) * 1e3 for lap in (0, 1))
    return (
        name,
        f"{forward:.4g}",
        f"{backward:.4g}",
        laps.ms(2),
        f"{laps.least_cpu(2) * 1e3:.4g}",
        f"{naive.least_cpu(2) / laps.least_cpu(2):.2f}",
        f"{gflop / laps.least_cpu(1):.3g}",
        f"{mib:.0f}",
        "" if error is None else f"{error:.0e}",
    )


def _lstm(case: Case) -> tuple[Step, float]:
    """Return an update of nn.LSTM alone, and its operations in GFLOP."""
    m = case.config.model
    inputs = (m.embed_dim or case.x_dim) + m.z_dim
    lstm, x = nn.LSTM(inputs, m.hidden), torch.randn(case.steps, case.batch, inputs)
    step = _stepper(list(lstm.parameters()), lambda: lstm(x)[0].square().sum(), Candidate(LSTM, ""))
    return step, 6e-9 * case.steps * case.batch * 4 * m.hidden * (inputs + m.hidden)


def _floor(case: Case) -> tuple[str, ...]:
    """Return the row of what the machine could do: all products at the best rate, weights read once for each step.

    The reading is that of the loops' weights alone, over and over, so from whatever cache holds them.
    """
    a, b, c = torch.randn(1536, 1536), torch.randn(1536, 1536).t(), torch.empty(1536, 1536)
    with through_onednn():
        rate = 2e-9 * 1536**3 / min(_seconds(lambda: torch.mm(a, b, out=c)) for _ in range(9))
    loops = [list(case.model.recurrence.parameters()), [case.model.backward_net.weight_hh_l0]]
    seconds = [min(_seconds(lambda w=w: [p.detach().sum() for p in w]) for _ in range(9)) for w in loops]
    reading, computing = 2 * case.steps * sum(seconds), case.gflop() / rate
    limit = f"{computing * 1e3:.4g} at {rate:.0f} GFLOP/s; {reading * 1e3:.4g} to read the loops' weights"
    return ("floor: the products alone", "", f"{max(reading, computing) * 1e3:.4g}", limit, "", "", "", "", "")


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _interleaved(steps: dict[str, Step], repeats: int) -> dict[str, Laps]:
    laps = {name: Laps([], []) for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            wall, cpu = step()
            if repeat > 0:
                laps[name].wall.extend(wall)
                laps[name].cpu.extend(cpu)
    return laps


def _peak_mib(step: Step) -> float:
    """Return how far an update raises the resident memory of this process (Linux)."""
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark begins anew
    before = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def _errors(case: Case) -> dict[str, float]:
    """Return the error of every candidate's gradient, in the configuration that is timed."""
    exact, errors = case.exact_gradient(), {}
    for candidate in CANDIDATES:
        errors[candidate.name] = float((case.gradient(candidate) - exact).norm() / exact.norm())
        if errors[candidate.name] > MOST_ERROR:
            raise AssertionError(f"{candidate.name}: gradient off by {errors[candidate.name]:.1e}")
    return errors
