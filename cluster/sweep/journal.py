"""What a sweep's driver was told and decided, in order: a file in each trial's folder, written before it acts.

    trials/003/decisions.jsonl      {"order": 17, "step": 300, "decision": "CONTINUE", "valid/elbo_nats": ...}

`order` counts over all trials, so that a restarted driver tells its scheduler the same in the same order, and the
scheduler comes to the same rungs and decides the rest as it would have.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zfdist.run_protocol import VALID_ELBO, records

FILE = "decisions.jsonl"

Decision = Literal["CONTINUE", "STOP", "END"]


class Event(NamedTuple):
    """A validation of a trial and what was decided at it; END for the last one of a trial that ended by itself."""

    trial: str
    order: int
    step: int
    decision: Decision
    metrics: dict[str, float]

    @property
    def result(self) -> dict[str, float]:
        """Step and metrics together."""
        return {"step": self.step, **self.metrics}


def write(folder: Path, event: Event) -> None:
    """Append an event to the journal in a trial's folder, and bring it to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"order": event.order, "step": event.step, "decision": event.decision, **event.metrics})
    with (folder / FILE).open("ab") as file:
        file.write(b"\n" * _is_torn(folder / FILE) + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path, trial: str) -> list[Event]:
    """Return what the journal of a trial's folder holds; a line that a crash tore is no event."""
    found = []
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    for line in lines:
        try:
            tree = json.loads(line)
            event = Event(trial, tree.pop("order"), tree.pop("step"), tree.pop("decision"), tree)
        except (ValueError, KeyError, AttributeError):
            continue
        found.append(event)
    return found


def without_journal(folder: Path, trial: str, order: int) -> list[Event]:
    """Return events for what a run folder recorded, where no journal was kept: of a trial that is over."""
    seen = [r for r in records(folder) if r.get(VALID_ELBO) is not None]
    return [
        Event(trial, order + i, r["step"], "END" if i == len(seen) - 1 else "CONTINUE", validation_of(r))
        for i, r in enumerate(seen)
    ]


def validation_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a validation in a record."""
    return {name: value for name, value in record.items() if name.startswith("valid/") and value is not None}


def in_order(events: Iterable[Event]) -> Sequence[Event]:
    """Return events of many trials in the order in which they were decided."""
    return sorted(events, key=lambda event: event.order)


def _is_torn(path: Path) -> bool:
    """Return whether a file has a last line without an end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
