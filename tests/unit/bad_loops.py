"""Implementations of the recurrence that do what none should, for a probe to find out."""

import ctypes
import math
import os
import time

import torch

from zfdist.model.kernels.manual_backward import unroll


def segfaults(core):
    """Read where nothing is."""
    ctypes.string_at(0)


def hangs(core):
    """Never come back, in C and holding Python's lock."""
    ctypes.PyDLL(None).pause()


def spins(core):
    """Never come back, in Python."""
    while True:
        time.sleep(0.01)


def leaves(core):
    """End the process, as if all were well."""
    os._exit(0)


def raises(core):
    """Fail as a compiler does."""
    raise RuntimeError("no kernel image is available\nfor this device")


def not_finite(core):
    """Give a NaN, in one place of the last step."""
    h, z, q, c = unroll(core)
    return h, z, q, torch.where(torch.arange(c.numel()).view_as(c) == 3, math.nan, c)


def wrong_gradient(core):
    """Give the right outputs, and to a bias a gradient that is a tenth too small."""
    return unroll(core._replace(b_q_Q=core.b_q_Q.detach() * 0.1 + core.b_q_Q * 0.9))


_calls = 0


def wrong_later(core):
    """Be right at first and wrong from the third call on, as a recording that reads a buffer which is gone."""
    global _calls
    _calls += 1
    h, z, q, c = unroll(core)
    return (h, z, q, c) if _calls < 3 else (h.roll(1, 0), z, q, c)


def other_bits(core):
    """Round in another way at every call."""
    global _calls
    _calls += 1
    h, z, q, c = unroll(core)
    return h * (1.0 + _calls * 2.0**-22), z, q, c
