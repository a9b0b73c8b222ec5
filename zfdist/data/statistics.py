"""Sums over samples from which mean and standard deviation follow exactly."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """Exact sums over samples, integers of 16 bits or fewer; merging them is exact and free of order."""

    count: int = 0
    total: int = 0
    squares: int = 0
    minimum: int = 0
    maximum: int = 0

    @staticmethod
    def of(samples: NDArray[np.integer], block: int = 1 << 20) -> "Statistics":
        """Sum over samples; `block` bounds the memory used."""
        result = Statistics()
        for start in range(0, samples.size, block):
            part = samples[start : start + block].astype(np.int64)
            one = Statistics(part.size, int(part.sum()), int((part * part).sum()), int(part.min()), int(part.max()))
            result = result.merged(one)
        return result

    def merged(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both sets of samples together."""
        if not self.count or not other.count:
            return self if self.count else other
        return Statistics(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    @property
    def is_possible(self) -> bool:
        """Whether any samples have these sums."""
        spread = self.count * self.squares - self.total**2
        return self.count > 0 and spread >= 0 and self.count * self.minimum <= self.total <= self.count * self.maximum

    @property
    def mean(self) -> float:
        """Mean in the units of the samples (sound: PCM), the float nearest to the exact value."""
        return float(Fraction(self.total, self.count))

    @property
    def std(self) -> float:
        """Standard deviation in the same units, dividing by the count."""
        return math.sqrt(Fraction(self.count * self.squares - self.total**2, self.count**2))
