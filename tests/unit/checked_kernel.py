"""A stand-in for a Triton kernel, that checks its arguments in place of being launched."""

from collections.abc import Callable
from typing import Any

import torch

GPU = torch.device("cuda", 0)


class Checked:
    """A Triton kernel that is not launched: its arguments are those that its source expects."""

    launches = 0

    def __init__(self, kernel: Any) -> None:
        self._names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < size < 2**31 for size in grid) and all(size < 2**16 for size in grid[1:])

        def launch(*arguments: Any, **constants: Any) -> None:
            Checked.launches += 1
            named = dict(zip(self._names, arguments, strict=False)) | constants
            assert list(named) == self._names
            wide = {v.dtype for n, v in named.items() if isinstance(v, torch.Tensor) and not n.startswith("narrow_")}
            assert len(wide) == 1, f"{self._names}: types {wide}"
            for name, value in named.items():
                if isinstance(value, torch.Tensor):
                    is_used = constants["NARROW"] or not name.startswith("narrow_")
                    assert value.device == GPU and value.is_contiguous(), name
                    assert not is_used or not name.startswith("narrow_") or value.dtype.itemsize == 2, name
                else:
                    assert isinstance(value, bool | int | float), name

        return launch
