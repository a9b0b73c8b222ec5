"""What a run and whoever started it say to each other: progress, how it ended, and the files that tell.

Without torch: a command that starts workers elsewhere, and what of Ray stands between them, need not wait for it.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from zfdist.errors import ZfdistError

METRICS = "metrics.jsonl"
"""One record a line, see `zfdist.metrics`."""
VALID_ELBO = "valid/elbo_nats"
"""The name in METRICS, and in manifests, of what validations are ranked by: the ELBO with KL weight 1 per sequence."""
RESULT = "result.json"
"""How a run ended; there once it has."""
LOG = "log.txt"
"""What rank 0 of a run prints, and what becomes of its workers; the command that started it repeats these lines."""
ERRORS = "error.log"
"""Tracebacks of workers, appended to."""
STOP = "stop"
"""A file of this name in a run folder asks the run to save and end."""
VALIDATION = (
    VALID_ELBO,
    "valid/log_px_nats",
    "valid/kl_nats",
    "valid/kl_nats_per_frame",
    "valid/nats_per_sample",
)
"""The metrics that every validation writes."""
OVER = ("finished", "stopped", "diverged")
"""The states in which a run may have ended; a sweep never trains such a trial again."""


class NonFiniteError(ZfdistError):
    """Too many updates in a row had a non-finite loss or gradient; names the step, terms and sequences."""


class GpuMemoryError(ZfdistError):
    """A run does not fit into the memory of its GPU, or into its share of it; names both and the remedies."""


class Weights(NamedTuple):
    """What a new run starts from instead of random weights."""

    where: str
    """A checkpoint, run or export, or the URI of a run."""
    as_trained: bool = False
    """Read sound under the mean and std that they were trained with, and not under its own."""


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


def say_beside(line: str) -> None:
    """Print a line where it cannot be taken for what a command was asked for."""
    print(line, file=sys.stderr, flush=True)


def records(run_folder: Path, say: Callable[[str], None] = say_beside) -> Iterator[dict[str, Any]]:
    """Yield the metrics of a run in order.

    Lines that are no records (what a crash cut off or left empty) are passed over wherever they stand, and counted to
    `say` once.

    Raises:
        OSError: if the file is there and cannot be read.
    """
    path = run_folder / METRICS
    bad = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            record = record_of(line)
            if record is None:
                bad += 1
            else:
                yield record
    if bad:
        say(passed_over(path, bad))


def record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl; None if it is torn, empty, of NULs, or no record."""
    try:
        record = json.loads(line.strip(b"\0 \t\r\n").decode())  # a crash may leave NULs in front of a whole record
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int) and _is_number(record.get("time_s", 0))
    return record if is_record else None


def passed_over(path: Path, bad: int) -> str:
    """Return the sentence about lines that are no records."""
    return f"{path}: {bad} line{'s' * (bad != 1)} passed over: torn, empty or damaged, as a crash leaves them"


def result(run_folder: Path) -> dict[str, Any] | None:
    """Return how a run ended; None if it has not, or the file that says so is empty or torn.

    Raises:
        OSError: if the file is there and cannot be read.
    """
    try:
        found = json.loads((run_folder / RESULT).read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("state") not in OVER:
        return None
    return found if found["state"] == "diverged" or _is_number(found.get("step")) else None


def best_validation(found: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the record with the highest finite validation ELBO, of equal ones the first; None without a validation."""
    return max((r for r in found if r.get(VALID_ELBO) is not None), key=lambda r: float(r[VALID_ELBO]), default=None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
