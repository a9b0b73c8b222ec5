"""Triton's kernels as its interpreter runs them on a CPU, in numpy, program by program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def interpreted() -> Iterator[None]:
    """Have kernels that are imported within the block be the interpreter's, unless there is a GPU.

    Triton decides that by its variable when they are defined, and looks again when they are run.
    """
    before = os.environ.get("TRITON_INTERPRET")
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
