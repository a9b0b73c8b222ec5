"""Memory that a step frees is kept for the next step.

A step allocates the same tensors as the one before, and frees them. glibc returns large freed blocks to the kernel,
which must fill every page of them with zeros when the next step asks for them again: at the paper's sizes some 40,000
pages, and 3 to 10 % of an update; the busier the machine, the more.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>, and what glibc's own adjustment arrives at after the first large blocks were freed.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_ALWAYS_KEPT, _TRIM_BYTES, _MMAPS = 2**31 - 1, 64 * 2**20, 65_536


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Keep freed memory in this process within the block, and give it back afterwards; nothing without glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _ALWAYS_KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MMAPS)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        libc.malloc_trim(0)
