"""One recording of a loop over time: both passes on fixed buffers, inside one autograd node.

What is recorded is the body of an autograd function. Inputs, weights too, are copied in and results copied out, so that
ZeRO may point parameters elsewhere and nobody outside holds a buffer that the next replay overwrites.

Lengths are rounded up, so that few recordings serve many. A step beyond the end changes nothing that comes out, and
every gradient of it is exactly 0. In the recurrence it hands on the state as well: its input gate and output gate are
shut and its forget gate open to the last bit.

Shapes: as in zfdist.model.kernels.core_arguments.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels import matmul_backend
from zfdist.model.kernels.arguments import gradients
from zfdist.model.kernels.lstm_cell import GATES
from zfdist.profile import spanned

Outputs = Sequence[Tensor | None]


class Captured(NamedTuple):
    """A function that was recorded on fixed buffers."""

    replay: Callable[[], None]
    outputs: Outputs
    """The buffers that its results stay in."""
    held_bytes: int
    """Memory that the recording keeps: these buffers, and all that is computed on the way to them."""


Capture = Callable[[Callable[[], Outputs]], Captured]
"""Records a function."""

_SHUT = -1e4  # a pre-activation whose sigmoid is 0, and with the other sign 1, whatever is added to it
_SETTINGS = 2  # the last arguments; all others are tensors


class Loop(NamedTuple):
    """What is to be recorded: an autograd function whose last two arguments, a number and a type, are settings."""

    function: type[torch.autograd.Function]
    timed: int
    """So many of the first arguments, and of the first results, have a time axis; of the others none."""
    idle: Callable[[Tensor], Tensor] = lambda first: first.new_zeros(first.shape[2:])
    """Gives the row of the first argument for a step beyond the end, where all others are 0."""


def padded(steps: int) -> int:
    """Return the length that so many steps are recorded with: at most a sixteenth more, from 64 steps on.

    Multiples of 4 below 128 steps, of 8 below 256, of 16 below 512, and so on.
    """
    grain = max(4, 1 << max(0, steps.bit_length() - 5))
    return -(-steps // grain) * grain


Key = tuple[Any, ...]
"""What tells recordings of one loop apart; first the length."""


def key_of(arguments: Sequence[Any], timed: int) -> Key:
    """Return all that a recording is made for.

    That is its length, shapes, types, device, how float32 products are rounded, the clamp and the type of operands.
    """
    first = arguments[0]
    shapes = tuple(a.shape[1:] for a in arguments[:timed])
    rounding = matmul_backend.rounding()
    return (padded(len(first)), *shapes, first.dtype, first.device, rounding, *arguments[-_SETTINGS:])


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


class Recording:
    """Both passes on fixed buffers. Between a forward replay and its backward nobody else may use it."""

    def __init__(self, key: Key, loop: Loop, capture: Capture, arguments: Sequence[Any]) -> None:
        self.key = key
        self._timed, tape = loop.timed, _Tape()
        self._ticket: weakref.ref[_Ticket] | None = None
        steps = key[0]
        self._inputs = [
            torch.zeros((steps, *a.shape[1:]) if i < loop.timed else a.shape, dtype=a.dtype, device=a.device)
            for i, a in enumerate(arguments[:-_SETTINGS])
        ]
        self._idle_row = loop.idle(self._inputs[0])
        self._fill(arguments)
        self._forward = capture(lambda: loop.function.forward(tape, *self._inputs, *arguments[-_SETTINGS:]))
        self._given = [
            torch.zeros_like(o, memory_format=torch.contiguous_format) for o in self._forward.outputs if o is not None
        ]
        self._backward = capture(lambda: loop.function.backward(tape, *self._given))
        captured = self._forward.held_bytes + self._backward.held_bytes
        self.held_bytes = captured + sum(buffer.nbytes for buffer in (*self._inputs, *self._given))

    def is_idle(self) -> bool:
        """Return whether no forward pass waits for its backward pass here."""
        ticket = None if self._ticket is None else self._ticket()
        return ticket is None or ticket.spent

    def forward(self, arguments: Sequence[Any]) -> tuple[list[Tensor], _Ticket]:
        """Run the forward pass; return copies of its results, and the ticket for one or more backward passes."""
        ticket = _Ticket(len(arguments[0]))
        self._ticket = weakref.ref(ticket)
        self._fill(arguments)
        self._forward.replay()
        return _copies(self._forward.outputs, len(arguments[0]), self._timed), ticket

    def backward(self, ticket: _Ticket, outside: Sequence[Tensor]) -> list[Tensor | None]:
        """Run the backward pass of the forward pass that gave `ticket`; return copies of its results."""
        if self._ticket is None or self._ticket() is not ticket:
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
        self._backward.replay()
        ticket.spent = True
        return _copies(self._backward.outputs, steps, self._timed)

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


def replayed(recording: Recording, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """Run a recording that is idle, as one node of the graph."""
    results: tuple[Tensor, ...] = _Replayed.apply(recording, *arguments)  # type: ignore[no-untyped-call]
    return results


class _Replayed(torch.autograd.Function):
    """A recording as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.recording = recording
        outputs, ctx.ticket = recording.forward(arguments)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *outside: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recording.backward(ctx.ticket, outside)
