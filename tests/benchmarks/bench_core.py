"""A training step of the network by every implementation of its loop: forward, backward, and the whole update.

The rival is the naive loop as published (published_loop.py); the lower bound is nn.LSTM of the same width over the
same steps, which has no latents. All share weights, data and noise, and run in turn in one process, on a GPU where
there is one. The error of each gradient is taken in the very configuration that is timed (core_case.py).
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from core_case import NAIVE, ON_A_CPU, ON_A_GPU, SIZES, Candidate, Case, candidates
from measure import Options, Table
from torch import Tensor, nn

from zfdist.malloc import freed_is_kept
from zfdist.model.kernels.matmul_backend import through_onednn

__all__ = ["SIZES", "tables"]

UNTIL_KEPT = 5  # updates until nothing more is asked of the kernel
CUDNN_UNITS = 128  # its persistent kernels take inputs of a multiple


class Passes(NamedTuple):
    """One row at work: forward gives the loss, backward leaves gradients; a recording does both at once."""

    forward: Callable[[], Tensor | None]
    backward: Callable[[Tensor | None], None]

    def both(self) -> None:
        self.backward(self.forward())


class Laps(NamedTuple):
    """Seconds to the end of the forward pass, of the backward pass and of the update, for all repeats."""

    wall: list[tuple[float, ...]]
    cpu: list[tuple[float, ...]]  # of the processor; on a GPU of the clock

    def ms(self, lap: int) -> str:
        """Return the median of the clock's in ms, with quartiles."""
        values = [row[lap] for row in self.wall]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return f"{middle * 1e3:.4g} ({low * 1e3:.4g} .. {high * 1e3:.4g})"

    def least(self, lap: int) -> float:
        """Return the least, which a busy machine lengthens less."""
        return min(row[lap] for row in self.cpu)


Step = Callable[[], Laps]


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for size in options.sizes or (ON_A_GPU if device.type == "cuda" else ON_A_CPU):
        yield _table(size, Case(SIZES[size](), device), options)


def _table(size: str, case: Case, options: Options) -> Table:
    exact, errors, steps = case.exact_gradient(), {}, {}
    for candidate in candidates(case.device):
        passes = _passes(case, candidate)
        errors[candidate.name] = case.error(candidate, passes.both, exact)
        steps[candidate.name] = _stepper(case, list(case.model.parameters()), passes, candidate)
    gflop = dict.fromkeys(steps, case.gflop())
    notes = ()
    if options.compiled:
        name = "hoisted loop, torch.compile"
        steps[name], seconds = _compiled(case, Candidate(name, "reference", fused_adam=False))
        gflop[name] = case.gflop()
        notes = (f"torch.compile took {seconds:.0f} s, which its row leaves out",)
    for name, step, operations in _lstms(case):
        steps[name], gflop[name] = step, operations
    laps = _interleaved(steps, options.repeats)
    memory = {name: _peak_mib(step, case.device) for name, step in steps.items()}
    m = case.config.model
    least = "least processor time" if case.device.type == "cpu" else "least time"
    return Table(
        f"core, {size}: hidden {m.hidden}, z {m.z_dim}, mlp {m.mlp_dim}, {case.steps} steps x {case.batch} sequences",
        ("one update", "forward ms", "+ backward ms", "+ clip and Adam, ms (quartiles)", "least ms", "x naive",
         "GFLOP/s", "MiB", "gradient error"),
        [_row(n, laps[n], laps[NAIVE], gflop[n], memory[n], errors.get(n)) for n in steps] + [_floor(case)],
        (
            f"least ms, x: {least} of the update, and the naive loop's over it: other work delays these less",
            f"GFLOP/s: forward and backward, by {least}. MiB: peak of an update beyond what stays between updates",
            "gradient error: over all parameters, relative to float64; too large a one for its precision is refused",
            *notes,
        ),
    )  # fmt: skip


def _passes(case: Case, candidate: Candidate) -> Passes:
    def forward() -> Tensor:
        with case.products(candidate):
            return case.loss(candidate)

    def backward(loss: Tensor | None) -> None:
        assert loss is not None
        with case.products(candidate):
            loss.backward()

    passes = Passes(forward, backward)
    return _recorded(case, passes) if candidate.recorded else passes


def _recorded(case: Case, passes: Passes) -> Passes:
    """Record both passes of the whole network as one CUDA graph; its gradients stay where they were recorded."""
    parameters, side = list(case.model.parameters()), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            case.model.zero_grad()
            passes.both()
    torch.cuda.current_stream().wait_stream(side)
    case.model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes.both()
    gradients = [parameter.grad for parameter in parameters]

    def replay() -> None:
        graph.replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    return Passes(replay, lambda _: None)


def _stepper(case: Case, parameters: Sequence[nn.Parameter], passes: Passes, candidate: Candidate) -> Step:
    """Return a function that makes one update and takes the time three times."""
    adam = torch.optim.Adam(parameters, lr=0.0, eps=1e-5, fused=candidate.fused_adam)
    on_gpu = case.device.type == "cuda"

    def mark() -> tuple[float, float]:
        if on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        return now, now if on_gpu else time.process_time()

    def update() -> Laps:
        gc.collect()
        marks = [mark()]
        with case.products(candidate):  # Adam too
            adam.zero_grad()
            loss = passes.forward()
            marks.append(mark())
            passes.backward(loss)
            marks.append(mark())
            nn.utils.clip_grad_norm_(parameters, 100.0)
            adam.step()
            marks.append(mark())
        wall, cpu = (tuple(mark[i] - marks[0][i] for mark in marks[1:]) for i in (0, 1))
        return Laps([wall], [cpu])

    def kept() -> Laps:
        with freed_is_kept():
            for _ in range(UNTIL_KEPT):
                update()
            return update()

    return kept if candidate.kept else update


def _compiled(case: Case, candidate: Candidate) -> tuple[Step, float]:
    """Return an update of the hoisted loop under torch.compile, and how long that took to compile."""
    forward = torch.compile(lambda: case.loss(candidate))
    passes = Passes(forward, lambda loss: loss.backward())
    step, started = _stepper(case, list(case.model.parameters()), passes, candidate), time.perf_counter()
    step()
    return step, time.perf_counter() - started


def _lstms(case: Case) -> Iterator[tuple[str, Step, float]]:
    """Yield updates of nn.LSTM alone, with their operations in GFLOP; in fp16 at inputs that cuDNN is fastest with."""
    m = case.config.model
    inputs = (m.embed_dim or case.x_dim) + m.z_dim
    types = (torch.float32, torch.float16) if case.device.type == "cuda" else (torch.float32,)
    for dtype in types:
        name, size = "nn.LSTM without latents", inputs
        if dtype == torch.float16:
            name, size = f"{name}, fp16", -(-inputs // CUDNN_UNITS) * CUDNN_UNITS
        lstm = nn.LSTM(size, m.hidden).to(case.device, dtype)
        x = torch.randn(case.steps, case.batch, size, device=case.device, dtype=dtype)
        passes = Passes(lambda lstm=lstm, x=x: lstm(x)[0].square().mean(), lambda loss: loss.backward())
        step = _stepper(case, list(lstm.parameters()), passes, Candidate(name, ""))
        yield name, step, 6e-9 * case.steps * case.batch * 4 * m.hidden * (inputs + m.hidden)


def _row(name: str, laps: Laps, naive: Laps, gflop: float, mib: float, error: float | None) -> tuple[str, ...]:
    forward, backward = (statistics.median(row[lap] for row in laps.wall) * 1e3 for lap in (0, 1))
    return (
        name,
        f"{forward:.4g}",
        f"{backward:.4g}",
        laps.ms(2),
        f"{laps.least(2) * 1e3:.4g}",
        f"{naive.least(2) / laps.least(2):.2f}",
        f"{gflop / laps.least(1):.3g}",
        f"{mib:.0f}",
        "" if error is None else f"{error:.0e}",
    )


def _floor(case: Case) -> tuple[str, ...]:
    """Return the row of what the machine could do: all products at the best rate, weights read once for each step.

    On a CPU in float32, on a GPU in fp16. The reading is that of the loops' weights alone, over and over, so from
    whatever cache holds them.
    """
    dtype, size = (torch.float16, 8192) if case.device.type == "cuda" else (torch.float32, 1536)
    a, b, c = (torch.randn(size, size, device=case.device, dtype=dtype) for _ in range(3))
    with through_onednn():
        rate = 2e-9 * size**3 / min(_seconds(lambda: torch.mm(a, b.t(), out=c), case.device) for _ in range(9))
    loops = [list(case.model.recurrence.parameters()), [case.model.backward_net.weight_hh_l0]]
    weights = [[p.detach().to(dtype) for p in loop] for loop in loops]
    seconds = [min(_seconds(lambda w=w: [p.sum() for p in w], case.device) for _ in range(9)) for w in weights]
    reading, computing = 2 * case.steps * sum(seconds), case.gflop() / rate
    limit = f"{computing * 1e3:.4g} at {rate:.0f} GFLOP/s; {reading * 1e3:.4g} to read the loops' weights"
    return ("floor: the products alone", "", f"{max(reading, computing) * 1e3:.4g}", limit, "", "", "", "", "")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the processor's seconds, or on a GPU those of the clock, many runs together for they are short."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / 20


def _interleaved(steps: dict[str, Step], repeats: int) -> dict[str, Laps]:
    laps = {name: Laps([], []) for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            wall, cpu = step()
            if repeat > 0:
                laps[name].wall.extend(wall)
                laps[name].cpu.extend(cpu)
    return laps


def _peak_mib(step: Step, device: torch.device) -> float:
    """Return how far an update raises the memory of the GPU, or the resident memory of this process (Linux)."""
    step()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark begins anew
    before_kib = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - before_kib) / 1024


def _status_kib(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))
