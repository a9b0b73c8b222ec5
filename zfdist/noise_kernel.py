"""`seeding.normals` as one Triton kernel for a GPU, where tensor operations are some 150 launches.

Importing this module imports triton, so `seeding` does it at first use, and takes the kernel only on a device where it
gives the same bits. Shapes as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit(do_not_specialize=["key_0", "key_1", "batch", "dim", "blocks", "total"])  # one variant serves all sizes
def kernel(out_TBD, positions_B, key_0, key_1, batch, dim, blocks, total, BLOCK: tl.constexpr):
    """Fill four normals for each of `total` = T * B * `blocks` counters."""
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = item < total
    row, block = item // blocks, item % blocks
    position = tl.load(positions_B + row % batch, mask=inside, other=0)
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    step = (row // batch).to(tl.uint32)
    key_0, key_1 = key_0.to(tl.uint32, bitcast=True), key_1.to(tl.uint32, bitcast=True)
    c0, c1, c2, c3 = block.to(tl.uint32), step, low, high
    times_0, times_2 = tl.full(block.shape, 0xD2511F53, tl.uint32), tl.full(block.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high_0, high_2 = tl.umulhi(c0, times_0), tl.umulhi(c2, times_2)
        c1, c3, c0, c2 = c2 * times_2, c0 * times_0, high_2 ^ c1 ^ key_0, high_0 ^ c3 ^ key_1
        key_0, key_1 = key_0 + 0x9E3779B9, key_1 + 0xBB67AE85
    n0, n1 = _box_muller(c0, c1)
    n2, n3 = _box_muller(c2, c3)
    col = block * 4
    at = out_TBD + row.to(tl.int64) * dim + col
    tl.store(at, n0, mask=inside & (col < dim))
    tl.store(at + 1, n1, mask=inside & (col + 1 < dim))
    tl.store(at + 2, n2, mask=inside & (col + 2 < dim))
    tl.store(at + 3, n3, mask=inside & (col + 3 < dim))


@triton.jit
def _box_muller(w0, w1):
    uniform = (w0.to(tl.float32) + 1.0) * 2.3283064365386963e-10  # 2 ** -32
    radius = tl.sqrt_rn(tl.log(uniform) * -2.0)
    angle = w1.to(tl.float32) * 1.4629180792671596e-09  # 2 pi 2 ** -32
    return radius * tl.cos(angle), tl.sin(angle) * radius


def normals(key: tuple[int, int], positions_B: Tensor, num_steps: int, dim: int) -> Tensor:
    """Return what `seeding.normals` does: float32 [T, B, dim]."""
    out_TBD = torch.empty(num_steps, len(positions_B), dim, device=positions_B.device)
    blocks = -(-dim // 4)
    total = num_steps * len(positions_B) * blocks
    if total:
        words = [word - (word >> 31 << 32) for word in key]  # of 32 bits with a sign, so that one type serves all keys
        grid = (-(-total // _BLOCK),)
        kernel[grid](
            out_TBD, positions_B.contiguous(), *words, len(positions_B), dim, blocks, total, BLOCK=_BLOCK
        )  # fmt: skip
    return out_TBD
