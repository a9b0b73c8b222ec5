"""An LSTM a step at a time by the C++ of lstm_step.cpp: generation, where something else comes between two steps.

The weights are packed once for a loop and kept between its steps, so this is for loops that are long enough, without
gradients, on a CPU in float32 and float64.

Shapes: B batch, H hidden, Z latent, G = 4 H gates.
"""

import ctypes
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.arguments import prepared
from zfdist.model.kernels.core_arguments import step_arguments
from zfdist.model.kernels.cpp_library import call, threads_for
from zfdist.model.kernels.lstm_cell import GATES, State


class Order(NamedTuple):
    """The places of the gates."""

    o: int
    i: int
    f: int
    u: int


LEAST_STEPS = 32
"""Packing takes as long as so many steps save, at worst: a sequence alone at hidden 512; at hidden 64 it is 3."""
OURS, TORCH = Order(0, 1, 2, 3), Order(3, 0, 1, 2)


class _Sizes(ctypes.Structure):
    """`Sizes` of lstm_step.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "hidden", "z", "threads")),
        *((name, ctypes.c_long) for name in Order._fields),
        ("weights", ctypes.c_void_p),
    )


def is_worthwhile(steps: int) -> bool:
    """Return whether packing the weights pays for a loop of so many steps, where the C++ is supported."""
    return steps >= LEAST_STEPS and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Stepper:
    """The packed weights of one loop; called for each of its steps, by one thread at a time."""

    def __init__(self, w_h_GH: Tensor, w_z_GZ: Tensor | None, order: Order) -> None:
        w_z_GZ = w_h_GH[:, :0] if w_z_GZ is None else w_z_GZ
        given = {"w_h_GH": w_h_GH, "w_z_GZ": w_z_GZ}
        w_h_GH, w_z_GZ = prepared("step of an LSTM", {}, given, multiples={"G": (GATES, "H")})
        self._like, self._weights = w_h_GH.new_empty(0), w_h_GH.numel() + w_z_GZ.numel()
        self._sizes = _Sizes(0, w_h_GH.shape[1], w_z_GZ.shape[1], threads_for(self._weights), *order)
        call("steps_pack", self._sizes, (w_h_GH, w_z_GZ))
        weakref.finalize(self, call, "steps_release", self._sizes, (self._like,))

    def __call__(self, gx_BG: Tensor, z_BZ: Tensor | None, state: State) -> State:
        """Return the next state, in new memory, from the projected input and z, which is None without latents."""
        sizes = self._sizes
        given = step_arguments(gx_BG, z_BZ, state, sizes.hidden, sizes.z, self._like)
        sizes.batch = len(given[0])
        sizes.threads = threads_for(sizes.batch * self._weights)
        following = State(torch.empty_like(given[2]), torch.empty_like(given[3]))
        call("steps_step", sizes, (*given, *following))
        return following
