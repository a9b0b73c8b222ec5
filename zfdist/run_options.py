"""The options of a run, which travel whole: from the command line to whoever launches it, and to every worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from zfdist.config import Config, ConfigError
from zfdist.run_protocol import Weights

HANG_TIMEOUT_S = 600.0


class Range(NamedTuple):
    """How many workers a run may have."""

    low: int
    high: int

    def __str__(self) -> str:
        """Return what --workers takes."""
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"

    @classmethod
    def parsed(cls, text: str) -> "Range":
        """Return the range of "N" or "MIN:MAX"; raises ConfigError."""
        parts = text.split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise ConfigError(f"--workers {text}: must be a number or MIN:MAX, e.g. 2 or 1:4")
        low, high = int(parts[0]), int(parts[-1])
        if low < 1:
            raise ConfigError(f"--workers {text}: must be 1 or more")
        if high < low:
            raise ConfigError(f"--workers {text}: the second number must not be below the first")
        return cls(low, high)


class RunLocation(NamedTuple):
    """Where a run lives that is no folder, and for whom it is trained."""

    uri: str
    owner: str
    """The same for all launches of one command, see `zfdist.lease`."""
    cache: Path
    """Where every node keeps its working copies."""


@dataclass(frozen=True)
class Machines:
    """Where it runs, and what is done when some of that is lost."""

    workers: str = "1"
    """Processes that share each global batch: a number, or MIN:MAX to shrink and grow with the machines."""
    cpus_per_worker: int | None = None
    """CPUs of each worker; None for an even part of what there is, or may come."""
    gpu: bool | None = None
    """A GPU for each worker; None if there are any, or may come."""
    max_failures: int = 3
    """Deaths of workers that are answered by going on from the newest checkpoint."""
    hang_timeout: float = HANG_TIMEOUT_S
    """A worker without progress for so many seconds counts as dead; more than the longest start or checkpoint."""
    wait_for_nodes: float | None = None
    """Seconds to wait for missing machines; None for 900 where any may come; else 0 at the start, 600 after a loss."""
    grow_every: float = 120.0
    """Seconds for which a launch is left alone before it is ended for the sake of more workers."""


@dataclass(frozen=True)
class RunOptions:
    """All that whoever starts a run says of it; the same in every launch and every worker."""

    config: Config
    folder: Path
    """Of the run, shared by all workers; or, with `store`, that of this process, which follows the store."""
    start_from: Weights | None = None
    """Whose weights a new run starts from."""
    profile: bool = False
    """Every worker also writes where its time goes, see `zfdist.profile`."""
    store: RunLocation | None = None
    """Where the run lives if not in `folder`."""
    machines: Machines = Machines()
    """Of these, a run that Ray does not start takes `gpu` and `hang_timeout`."""
