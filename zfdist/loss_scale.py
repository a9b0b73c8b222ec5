"""The factor on the loss that keeps gradients within the range of fp16: halved at an overflow, doubled with time."""

from typing import NamedTuple

GROW_AFTER = 2000
"""Updates without an overflow after which it doubles; this and the start are those of torch.amp.GradScaler."""


class LossScale(NamedTuple):
    """A power of two, so that multiplying and dividing by it is exact."""

    value: float = 2.0**16
    updates: int = 0
    """Made since it was changed last."""

    def after(self, *, skipped: bool) -> "LossScale":
        """Return what follows an update, which is skipped if its gradient was not finite."""
        if skipped:
            return LossScale(self.value / 2)
        if self.updates + 1 == GROW_AFTER:
            return LossScale(self.value * 2)
        return self._replace(updates=self.updates + 1)
