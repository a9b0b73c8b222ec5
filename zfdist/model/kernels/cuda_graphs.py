"""Loops over time recorded once and replayed as CUDA graphs: which recordings there are, and which are kept.

A sweep over T steps launches dozens of small kernels a step, and at the batches of this model the processor that
launches them is slower than the GPU that runs them. A graph is launched once. What is recorded (zfdist.model.kernels
.recording) is the body of another implementation: `manual_backward.BPTT`, `triton_recurrence`, srnn's chain by hand.
Nothing waits for the GPU. To autograd and DeepSpeed it is an ordinary operation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zfdist.model.kernels.core_arguments import ChainCore, Core, Results
from zfdist.model.kernels.manual_backward import BPTT
from zfdist.model.kernels.recording import (
    Capture,
    Captured,
    Key,
    Loop,
    Outputs,
    Recording,
    idle_row,
    key_of,
    padded,
    replayed,
)

SHARE = 0.25
"""Of the memory that this process may have on its GPU: what all recordings of a loop may hold together."""


def is_supported(device: torch.device) -> bool:
    """Return whether graphs can be recorded there."""
    return device.type == "cuda"


def unroll(core: Core) -> Results:
    """Run `manual_backward` as a graph; differentiable once."""
    h_TBH, z_TBZ, q_TBQ, c_BH = graphs_of(Loop(BPTT, timed=3, idle=idle_row))(core)
    return h_TBH, z_TBZ, q_TBQ, c_BH


def unroll_fused(core: Core) -> Results:
    """Run `triton_recurrence` as a graph; differentiable once."""
    from zfdist.model.kernels.triton_recurrence import TritonBPTT

    h_TBH, z_TBZ, q_TBQ, c_BH = graphs_of(Loop(TritonBPTT, timed=3, idle=idle_row))(core)
    return h_TBH, z_TBZ, q_TBQ, c_BH


def cuda_capture(function: Callable[[], Outputs]) -> Captured:
    """Record `function` as a CUDA graph, on a side stream after a warm-up there."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # compiles kernels and makes workspaces, which must not happen while recording
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # so that what is reserved from here on is the recording's own pool
    graph, before_bytes = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
    # Other threads (the loader, NCCL's watchdog) may go on calling CUDA meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        outputs = function()
    return Captured(graph.replay, outputs, max(0, torch.cuda.memory_reserved() - before_bytes))


class Graphs:
    """A loop over time, recorded for the shapes that come again while training; all recordings in `limit_bytes`."""

    def __init__(self, loop: Loop, capture: Capture, limit_bytes: float) -> None:
        self._loop = loop
        self._capture = capture
        self._limit_bytes = limit_bytes
        self._recordings: list[Recording] = []  # the last used comes last
        self._seen: set[Key] = set()
        self._too_large: set[Key] = set()

    def __call__(self, core: Core | ChainCore) -> tuple[Tensor, ...]:
        """Run all steps: recorded, or as it comes where no recording is to be had.

        That is for a shape that is new, where all recordings are in use, and without gradients: the shapes of
        evaluation are many and come seldom, and would drive those of training out.
        """
        arguments = core.prepared()  # a buffer would take what it is given in another shape or type
        records = torch.is_grad_enabled()
        with torch.no_grad():
            recording = self._idle(arguments, records=records)
        return self._as_it_comes(arguments) if recording is None else replayed(recording, arguments)

    @property
    def held_bytes(self) -> int:
        """Memory of all recordings."""
        return sum(recording.held_bytes for recording in self._recordings)

    def _as_it_comes(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """Run as a recording does: a run that is resumed has not recorded yet, and must find the same bits.

        So at the same length, and from copies and into copies, since products may depend on how memory is aligned:
        a recording has buffers of its own, and ZeRO's weights are views of one flat buffer.
        """
        steps, timed = len(arguments[0]), list(arguments[: self._loop.timed])
        beyond = padded(steps) - steps
        rows = [self._loop.idle(timed[0]), *(t.new_zeros(t.shape[2:]) for t in timed[1:])]
        filled = [torch.cat([t, row.expand(beyond, t.shape[1], -1)]) for t, row in zip(timed, rows, strict=True)]
        others = [a.clone() if isinstance(a, Tensor) else a for a in arguments[self._loop.timed :]]
        results = self._loop.function.apply(*filled, *others)  # type: ignore[no-untyped-call]
        cut = [r[:steps] if i < self._loop.timed else r for i, r in enumerate(results)]
        return tuple(r.clone(memory_format=torch.contiguous_format) for r in cut)

    def _idle(self, arguments: Sequence[Any], *, records: bool) -> Recording | None:
        key = key_of(arguments, self._loop.timed)
        found = next((r for r in self._recordings if r.key == key and r.is_idle()), None)
        if found is not None:
            self._recordings.remove(found)
            self._recordings.append(found)
            return found
        if not records or key in self._too_large:
            return None
        if key not in self._seen:
            self._seen.add(key)  # recording costs more than running: not for a shape that comes once
            return None
        if not self._make_room(key):
            return None
        found = Recording(key, self._loop, self._capture, arguments)
        self._recordings.append(found)
        if self.held_bytes > self._limit_bytes:  # more than expected
            self._recordings.remove(found)
            self._too_large.add(key)
        return found

    def _make_room(self, key: Key) -> bool:
        """Give up the recordings that were used least recently until another fits; return whether it does."""
        expected_bytes = max((r.held_bytes * key[0] / r.key[0] for r in self._recordings), default=0.0)
        for oldest in [r for r in self._recordings if r.is_idle()]:
            if self.held_bytes + expected_bytes <= self._limit_bytes:
                break
            self._recordings.remove(oldest)
            self._seen.discard(oldest.key)
        return self.held_bytes + expected_bytes <= self._limit_bytes or not self._recordings


@functools.cache
def graphs_of(loop: Loop) -> Graphs:
    """Return the recordings of a loop that this process has made on its GPU."""
    total_bytes: int = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return Graphs(loop, cuda_capture, SHARE * torch.cuda.get_per_process_memory_fraction() * total_bytes)


forget = graphs_of.cache_clear
"""Gives up all recordings: a run is over, and the next in this process has other shapes."""
