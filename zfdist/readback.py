"""Numbers that a device has computed, on their way to the host while the device goes on."""

import torch
from torch import Tensor


class Readback:
    """A copy of a small tensor that nobody has waited for yet."""

    def __init__(self, values: Tensor) -> None:
        """Begin to copy; what is queued on the device from here on is not waited for."""
        self._values, self._copied = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def values(self) -> list[float]:
        """Return them, once the device has come so far."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
