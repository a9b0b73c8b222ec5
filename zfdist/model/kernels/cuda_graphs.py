"""A loop over time recorded once and replayed: CUDA graphs of its forward and backward pass, inside one autograd node.

A sweep over T steps launches dozens of small kernels a step, and at the batches of this model the processor that
launches them is slower than the GPU that runs them. A graph is launched once. What is recorded is the body of another
implementation (`manual_backward.BPTT`, `triton_recurrence`, srnn's chain by hand), on buffers of its own: inputs,
weights too, are copied in and results copied out, so that ZeRO may point parameters elsewhere and nobody outside holds
a buffer that the next replay overwrites. Nothing waits for the GPU. To autograd and DeepSpeed it is an ordinary
operation.

Lengths are rounded up, so that few graphs serve many. A step beyond the end changes nothing that comes out, and every
gradient of it is exactly 0. In the recurrence it hands on the state as well: its input gate and output gate are shut
and its forget gate open to the last bit.

Shapes: as in zfdist.model.kernels.core_arguments.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.arguments import gradients
from zfdist.model.kernels.core_arguments import ChainCore, Core, Results
from zfdist.model.kernels.lstm_cell import GATES
from zfdist.model.kernels.manual_backward import BPTT
from zfdist.profile import spanned

Outputs = Sequence[Tensor | None]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Records a function on fixed buffers: returns how to run it again, and the buffers that its results stay in."""

LIMIT = 8
"""Graphs that are kept: each holds the activations of a whole batch."""
_SHUT = -1e4  # a pre-activation whose sigmoid is 0, and with the other sign 1, whatever is added to it
_SETTINGS = 2  # the last arguments; all others are tensors


def is_supported(device: torch.device) -> bool:
    """Return whether graphs can be recorded there."""
    return device.type == "cuda"


def unroll(core: Core) -> Results:
    """Run `manual_backward` as a graph; differentiable once."""
    h_TBH, z_TBZ, q_TBQ, c_BH = _plain()(core)
    return h_TBH, z_TBZ, q_TBQ, c_BH


def unroll_fused(core: Core) -> Results:
    """Run `triton_recurrence` as a graph; differentiable once."""
    h_TBH, z_TBZ, q_TBQ, c_BH = _fused()(core)
    return h_TBH, z_TBZ, q_TBQ, c_BH


def padded(steps: int) -> int:
    """Return the length that so many steps are recorded with: at most a sixteenth more, from 64 steps on.

    Multiples of 4 below 128 steps, of 8 below 256, of 16 below 512, and so on.
    """
    grain = max(4, 1 << max(0, steps.bit_length() - 5))
    return -(-steps // grain) * grain


def cuda_capture(function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """Record `function` as a CUDA graph, on a side stream after a warm-up there; see `Capture`."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # compiles kernels and makes workspaces, which must not happen while recording
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (the loader, NCCL's watchdog) may go on calling CUDA meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


class Loop(NamedTuple):
    """What is to be recorded: an autograd function whose last two arguments, a number and a type, are settings."""

    function: type[torch.autograd.Function]
    timed: int
    """So many of the first arguments, and of the first results, have a time axis; of the others none."""
    idle: Callable[[Tensor], Tensor] = lambda first: first.new_zeros(first.shape[2:])
    """Gives the row of the first argument for a step beyond the end, where all others are 0."""


class Graphs:
    """A loop over time, recorded for the shapes that come again; at most `limit` recordings."""

    def __init__(self, loop: "Loop", capture: Capture, limit: int = LIMIT) -> None:
        self._loop = loop
        self._capture = capture
        self._limit = limit
        self._recordings: list[_Recording] = []  # the last used comes last
        self._seen: set[_Key] = set()

    def __call__(self, core: Core | ChainCore) -> tuple[Tensor, ...]:
        """Run all steps, recorded or, for a shape that is new or where all recordings are in use, as it comes."""
        arguments = core.prepared()  # a buffer would take what it is given in another shape or type
        with torch.no_grad():
            recording = self._idle(arguments)
        if recording is None:
            return self._as_it_comes(arguments)
        results: tuple[Tensor, ...] = _Replayed.apply(recording, torch.is_grad_enabled(), *arguments)  # type: ignore[no-untyped-call]
        return results

    def _as_it_comes(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """Run at the length of a recording: a run that is resumed has not recorded yet, and must find the same bits."""
        steps, timed = len(arguments[0]), list(arguments[: self._loop.timed])
        beyond = padded(steps) - steps
        rows = [self._loop.idle(timed[0]), *(t.new_zeros(t.shape[2:]) for t in timed[1:])]
        filled = [torch.cat([t, row.expand(beyond, t.shape[1], -1)]) for t, row in zip(timed, rows, strict=True)]
        results = self._loop.function.apply(*filled, *arguments[self._loop.timed :])  # type: ignore[no-untyped-call]
        return tuple(r[:steps] if i < self._loop.timed else r for i, r in enumerate(results))

    def _idle(self, arguments: Sequence[Any]) -> "_Recording | None":
        key, idle = _key(arguments, self._loop.timed), [r for r in self._recordings if r.is_idle()]
        found = next((r for r in idle if r.key == key), None)
        if found is not None:
            self._recordings.remove(found)
        elif key not in self._seen:
            self._seen.add(key)  # recording costs more than running: not for a shape that comes once
            return None
        else:
            if len(self._recordings) >= self._limit:
                if not idle:
                    return None
                self._recordings.remove(idle[0])
                self._seen.discard(idle[0].key)
            found = _Recording(key, self._loop, self._capture, arguments)
        self._recordings.append(found)
        return found


@functools.cache
def _plain() -> Graphs:
    return Graphs(Loop(BPTT, timed=3, idle=idle_row), cuda_capture)


@functools.cache
def _fused() -> Graphs:
    from zfdist.model.kernels.triton_recurrence import TritonBPTT

    return Graphs(Loop(TritonBPTT, timed=3, idle=idle_row), cuda_capture)


_Key = tuple[Any, ...]


def _key(arguments: Sequence[Any], timed: int) -> _Key:
    """Return all that a recording is made for: length, shapes, types, device, the clamp and the type of operands."""
    first = arguments[0]
    shapes = tuple(a.shape[1:] for a in arguments[:timed])
    return (padded(len(first)), *shapes, first.dtype, first.device, *arguments[-_SETTINGS:])


class _Tape:
    """Stands in for autograd's context while `forward` and `backward` are recorded."""

    saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class _Ticket:
    """Held by the autograd node whose activations a recording holds; gone or spent, the recording is free."""

    spent = False

    def __init__(self, steps: int) -> None:
        self.steps = steps


class _Recording:
    """Both passes on fixed buffers. Between a forward replay and its backward nobody else may use it."""

    def __init__(self, key: _Key, loop: Loop, capture: Capture, arguments: Sequence[Any]) -> None:
        self.key = key
        self._function, self._timed, self._capture, self._tape = loop.function, loop.timed, capture, _Tape()
        self._ticket: weakref.ref[_Ticket] | None = None
        steps = key[0]
        self._inputs = [
            torch.zeros((steps, *a.shape[1:]) if i < loop.timed else a.shape, dtype=a.dtype, device=a.device)
            for i, a in enumerate(arguments[:-_SETTINGS])
        ]
        self._idle_row = loop.idle(self._inputs[0])
        self._fill(arguments)
        self._replay_forward, self._outputs = capture(
            lambda: loop.function.forward(self._tape, *self._inputs, *arguments[-_SETTINGS:])
        )
        self._given: list[Tensor] = []
        self._replay_backward: Callable[[], None] | None = None
        self._gradients: Outputs = ()

    def is_idle(self) -> bool:
        ticket = None if self._ticket is None else self._ticket()
        return ticket is None or ticket.spent

    def forward(self, arguments: Sequence[Any], *, differentiable: bool) -> tuple[list[Tensor], _Ticket]:
        """Run the forward pass; return copies of its results, and the ticket for one or more backward passes."""
        ticket = _Ticket(len(arguments[0]))
        self._ticket = weakref.ref(ticket)
        self._fill(arguments)
        self._replay_forward()
        if differentiable and self._replay_backward is None:  # here, as backward runs in a thread of autograd's
            self._given = [
                torch.zeros_like(o, memory_format=torch.contiguous_format) for o in self._outputs if o is not None
            ]
            self._replay_backward, self._gradients = self._capture(
                lambda: self._function.backward(self._tape, *self._given)
            )
        return _copies(self._outputs, len(arguments[0]), self._timed), ticket

    def backward(self, ticket: _Ticket, outside: Sequence[Tensor]) -> list[Tensor | None]:
        """Run the backward pass of the forward pass that gave `ticket`; return copies of its results."""
        if self._ticket is None or self._ticket() is not ticket or self._replay_backward is None:
            raise RuntimeError(
                "model.recurrence = graph: backward a second time, after the activations were overwritten; "
                "use bptt where a graph is kept (retain_graph)"
            )
        results = {
            f"result {i}": buffer[: ticket.steps] if i < self._timed else buffer for i, buffer in enumerate(self._given)
        }
        given, steps = gradients("recorded loop", results, outside), ticket.steps
        for i, (buffer, gradient) in enumerate(zip(self._given, given, strict=True)):
            if i < self._timed:
                buffer[:steps].copy_(gradient)
                buffer[steps:].zero_()
            else:
                buffer.copy_(gradient)
        self._replay_backward()
        ticket.spent = True
        return _copies(self._gradients, steps, self._timed)

    def _fill(self, arguments: Sequence[Any]) -> None:
        steps = len(arguments[0])
        for i, (buffer, argument) in enumerate(zip(self._inputs, arguments[:-_SETTINGS], strict=True)):
            if i < self._timed:
                buffer[:steps].copy_(argument)
                buffer[steps:].zero_()
            else:
                buffer.copy_(argument)
        self._inputs[0][steps:] = self._idle_row


def idle_row(gx_TBG: Tensor) -> Tensor:
    """Return the input of a step of the recurrence that hands on the state: o and i shut, f open, u anything."""
    shut = gx_TBG.new_full((gx_TBG.shape[2] // GATES,), _SHUT)
    return torch.cat([shut, shut, -shut, torch.zeros_like(shut)])


def _copies(buffers: Outputs, steps: int, timed: int) -> list[Any]:
    """Return copies of what is in the buffers, those with a time axis cut to the steps that are real."""
    cut = [b[:steps] if b is not None and i < timed else b for i, b in enumerate(buffers)]
    return [None if b is None else b.detach().clone(memory_format=torch.contiguous_format) for b in cut]


class _Replayed(torch.autograd.Function):
    """A recording as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, grad_enabled: bool, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.recording = recording
        differentiable = grad_enabled and any(ctx.needs_input_grad)
        outputs, ctx.ticket = recording.forward(arguments, differentiable=differentiable)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *outside: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.recording.backward(ctx.ticket, outside)
