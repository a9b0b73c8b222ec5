"""The most memory that tensors take at a time, counted and not sampled: the same on every machine."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):  # type: ignore[misc]
    """The most bytes alive at a time of storages that operations within the block made.

    What was there before counts only if an operation returns it; scratch memory inside an operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage.data_ptr())
                weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
                self._alive += storage.nbytes()
                self.peak = max(self.peak, self._alive)
        return result

    def _freed(self, pointer: int, size: int) -> None:
        self._known.discard(pointer)
        self._alive -= size
