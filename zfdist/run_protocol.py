"""What a run and whoever started it say to each other: progress, how it ended, and the files that tell.

Without torch: a command that starts workers elsewhere, and what of Ray stands between them, need not wait for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

METRICS = "metrics.jsonl"
"""One record a line, see `zfdist.metrics`."""
RESULT = "result.json"
"""How a run ended; there once it has."""


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a non-finite loss or gradient; names the step, terms and sequences."""


class Reporter(Protocol):
    """Whoever started this run: told of progress, asked whether to go on."""

    def report(self, metrics: dict[str, float], checkpoint_folder: Path | None) -> None:
        """Take news of a validation or checkpoint; every worker calls it at the same steps."""

    def progress(self, step: int) -> None:
        """Take the sign that this worker is alive: it has finished a step, a validation batch or a checkpoint."""

    def should_stop(self) -> bool:
        """Return whether the run should save and end; every worker is asked at every step, and one yes is enough."""


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    state: Literal["finished", "stopped"]
    step: int


def records(run_folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the metrics of a run in order; a last line cut by a crash is left out."""
    path = run_folder / METRICS
    if not path.is_file():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
