"""Where the time of a step goes: named ranges in the code, and a profiler that a run can be asked for.

Off, a range costs one look at a variable. On (`--profile`), each worker writes into the run's folder `profile`

    rank-R.json.gz           a trace of a few steps in Chrome's format: open it in https://ui.perfetto.dev
    rank-R-breakdown.json    seconds of a step by range, over all steps after those of the trace

A range that lies in another is taken out of it, so the rows of a breakdown add up to the step; `other` is what no
range covers. On a GPU the end of a range waits for it, so that its time counts where it was asked for, unless a CUDA
graph is being recorded; the steps of the trace do not wait, and are left out of the breakdown. Nothing here changes a
number of the run.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, record_function

from zfdist import atomic_io

FOLDER = "profile"
WARM_UP_STEPS = 5
"""Steps before the trace: they compile, allocate and fill caches."""
TRACE_STEPS = 5
ROWS = (
    "data wait",
    "forward core",
    "forward tail",
    "backward core",
    "backward tail",
    "gradient reduction",
    "optimizer",
    "validation",
    "checkpoint",
    "logging",
)
"""The ranges: core is the loops over time, the recurrence and LSTMs; tail the nets, terms and noise around them. What
a library does backward, cuDNN in its LSTMs, ZeRO 2 and 3 in reducing most gradients, counts as tail."""

P = ParamSpec("P")
R = TypeVar("R")
_NOTHING = contextlib.nullcontext()
_clock: "_Clock | None" = None  # of this process; ranges are where nobody knows of runs


class Breakdown(NamedTuple):
    """Means over `steps` steps: seconds of a step, and of each range without the ranges inside it."""

    steps: int
    step_s: float
    range_s: dict[str, float]

    def table(self) -> str:
        """Return the breakdown for people."""
        rows = [f"{name:20} {s:9.6f} s {100 * s / self.step_s:5.1f} %" for name, s in self.range_s.items()]
        return "\n".join([f"a step, mean of {self.steps}: {self.step_s:.6f} s", *(f"  {row}" for row in rows)])


def span(name: str, *, whole: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Return the range `name` of ROWS, to be entered; `whole` counts the ranges inside it as part of it."""
    return _NOTHING if _clock is None else _clock.span(name, whole)


def spanned(name: str, *, whole: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make every call of a function the range `name`."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name, whole=whole):
                return function(*args, **kwargs)

        return run

    return wrap


@contextlib.contextmanager
def profiled(run_folder: Path | None, rank: int, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profile what runs within the block; gives what is to be called at the end of every step.

    Args:
        run_folder: where `profile/` goes; None for no profile.
        rank: of this worker.
        say: told the breakdown, and where the trace is.
    """
    global _clock
    if run_folder is None:
        yield lambda: None
        return
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock(folder / f"rank-{rank}.json.gz", say)
    _clock = clock
    try:
        with clock.tracer:
            yield clock.step
    finally:
        _clock = None
    found = clock.breakdown()
    if found is None:
        say(f"no breakdown: the run ended within the first {clock.left_out} steps, which it leaves out")
        return
    atomic_io.write_json(folder / f"rank-{rank}-breakdown.json", found._asdict())
    say(found.table())


class _Clock:
    """Adds up the ranges of this process, and traces a few steps of it."""

    left_out = WARM_UP_STEPS + 1 + TRACE_STEPS  # the tracer wants a step to warm up itself

    def __init__(self, trace: Path, say: Callable[[str], None]) -> None:
        self._trace, self._say = trace, say
        self._on_gpu = torch.cuda.is_available()
        self._steps = 0
        self._started_s = 0.0
        self._step_s = 0.0
        self._range_s = dict.fromkeys(ROWS, 0.0)
        self._this_step_s = dict.fromkeys(ROWS, 0.0)  # what follows the last step, as the loader's end, is of none
        self._open: list[float] = []  # seconds of the ranges within each range that is open
        self._closed = False  # within a range that counts as a whole
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_gpu
        window = torch.profiler.schedule(skip_first=WARM_UP_STEPS, wait=0, warmup=1, active=TRACE_STEPS, repeat=1)
        self.tracer = torch.profiler.profile(activities=activities, schedule=window, on_trace_ready=self._write)

    @contextlib.contextmanager
    def span(self, name: str, whole: bool) -> Iterator[None]:
        if self._closed:
            yield
            return
        self._closed = whole
        self._open.append(0.0)
        started_s = time.perf_counter()
        try:
            with record_function(name):
                yield
        finally:
            self._wait()
            elapsed_s = time.perf_counter() - started_s
            inner_s = self._open.pop()
            self._closed = False
            self._this_step_s[name] += elapsed_s - inner_s
            if self._open:
                self._open[-1] += elapsed_s

    def step(self) -> None:
        """Close a step."""
        self._wait()
        now_s = time.perf_counter()
        if self._counts():
            self._step_s += now_s - self._started_s
            self._range_s = {name: seconds + self._this_step_s[name] for name, seconds in self._range_s.items()}
        self._this_step_s = dict.fromkeys(ROWS, 0.0)
        self._steps += 1
        self.tracer.step()
        self._started_s = time.perf_counter()

    def breakdown(self) -> Breakdown | None:
        """Return the means of what was counted; None if nothing was."""
        counted = self._steps - self.left_out
        if counted <= 0:
            return None
        range_s = {name: seconds / counted for name, seconds in self._range_s.items()}
        step_s = self._step_s / counted
        return Breakdown(counted, step_s, range_s | {"other": step_s - sum(range_s.values())})

    def _counts(self) -> bool:
        return self._steps >= self.left_out

    def _wait(self) -> None:
        # While a CUDA graph is recorded nothing runs that could be waited for, and asking would end the recording.
        if self._on_gpu and self._counts() and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    def _write(self, tracer: torch.profiler.profile) -> None:
        tracer.export_chrome_trace(str(self._trace))
        self._say(f"a trace of {TRACE_STEPS} steps is in {self._trace}; open it in https://ui.perfetto.dev")
