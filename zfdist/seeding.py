"""One root seed, named streams: the noise of a sequence at a step is a pure function of where it belongs.

Nothing here touches the global random state, so a resumed run, another number of workers or another batch
shape draws the same numbers for the same sequence. The generator is Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC11), written in integer tensor operations, so that it runs on any device; on a
GPU where it gives the same bits, `noise_kernel` is that in one launch.

Shapes: T time, B batch, N Philox blocks (four 32-bit words each).
"""

import functools
import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

Key = tuple[int, int]
"""Two 32-bit words."""
Normals = Callable[[Key, Tensor, int, int], Tensor]
"""Called like `normals`."""

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_WORDS = 4


def key(seed: int, stream: str, step: int = 0) -> Key:
    """Return the Philox key of a named stream at an optimizer step."""
    digest = _digest(seed, stream, step)
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def torch_seed(seed: int, stream: str) -> int:
    """Return a seed for `torch.manual_seed`, in [0, 2**63), where torch itself must draw (initial weights)."""
    return int.from_bytes(_digest(seed, stream, 0), "little") >> 1


def normals(key: Key, positions_B: Tensor, num_steps: int, dim: int) -> Tensor:
    """Return standard normal noise [num_steps, B, dim], float32, on the device of `positions_B` (int64, >= 0).

    Element (t, b, j) depends on `key`, `positions_B[b]`, t and j only: not on the other sequences of the batch,
    the number of steps or dimensions, or the rank that asks.
    """
    kernel = _kernel(positions_B.device)
    return (_by_torch if isinstance(kernel, str) else kernel)(key, positions_B, num_steps, dim)


def describe(device: torch.device) -> str:
    """Return how noise is made there, and why not by one kernel where that might be."""
    kernel = _kernel(device)
    if device.type == "cpu" or not isinstance(kernel, str):
        return "op by op" if device.type == "cpu" else "in one kernel"
    return f"op by op ({kernel})"


@functools.cache
def _kernel(device: torch.device) -> Normals | str:
    """Return the kernel for this device, or why it does not serve: it must give the bits that `_by_torch` gives."""
    if device.type != "cuda":
        return "it is for a GPU"
    try:
        from zfdist import noise_kernel

        same = _is_same(noise_kernel.normals, device)
    except Exception as error:  # without triton, a compiler or Python's headers, or on a GPU that triton does not know
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return noise_kernel.normals if same else "the kernel gives other bits here"


def _is_same(candidate: Normals, device: torch.device) -> bool:
    positions_B = torch.arange(64, device=device) * 0x1_2345_6789
    case = ((0x9E3779B9, 0x12345678), positions_B, 16, 61)
    return torch.equal(candidate(*case), _by_torch(*case))


def _by_torch(key: Key, positions_B: Tensor, num_steps: int, dim: int) -> Tensor:
    blocks = math.ceil(dim / _WORDS)
    steps_T = torch.arange(num_steps, device=positions_B.device)
    blocks_J = torch.arange(blocks, device=positions_B.device)
    shape = (num_steps, positions_B.shape[0], blocks)
    counter = (
        blocks_J.expand(shape),
        steps_T[:, None, None].expand(shape),
        (positions_B & _MASK)[:, None].expand(shape),
        (positions_B >> 32)[:, None].expand(shape),
    )
    w0, w1, w2, w3 = philox(counter, key)
    pairs = torch.stack((*_box_muller(w0, w1), *_box_muller(w2, w3)), dim=-1)
    return pairs.view(num_steps, positions_B.shape[0], blocks * _WORDS)[..., :dim].contiguous()


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four random 32-bit words for each counter of four 32-bit words (int64 tensors in and out)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit words wraps in int64, but its 64 bits are right; the mask undoes the signed shift.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (odd >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (even >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = odd.bitwise_and_(_MASK), even.bitwise_and_(_MASK)
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def _digest(seed: int, stream: str, step: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()


def _box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Turn two uniform 32-bit words into two independent standard normals (float32, at most 6.7 in size)."""
    uniform = w0.to(torch.float32).add_(1.0).mul_(2.0**-32)  # in (0, 1]: its logarithm is finite
    radius = uniform.log_().mul_(-2.0).sqrt_()
    angle = w1.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    return radius * angle.cos(), angle.sin_().mul_(radius)
