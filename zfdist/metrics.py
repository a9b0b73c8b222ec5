"""From sums on the device to one dict per log step, and from that dict to files and a terminal.

`metrics.jsonl` is the truth, one JSON object a line; TensorBoard's events are written from the same dict. Names are
paths with the unit as their last word; README lists them.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from zfdist import atomic_io
from zfdist.profile import span
from zfdist.run_protocol import METRICS, RESULT, VALID_ELBO, best_validation, records
from zfdist.world import World

Batches = TypeVar("Batches")
_COUNTS = ("sequences", "frames", "updates", "skipped", "grad_norm")


class Meter:
    """Sums of one log window on one worker; `flush` turns all workers' sums into means per sequence."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        """Sum the terms `names`, e.g. elbo_nats, on `device`."""
        self._names = names
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._counts = dict.fromkeys(_COUNTS, 0.0)
        self._timer = time.monotonic()
        self._data_wait_s = 0.0

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add this worker's sums of one update; no copy to the host."""
        self._sums += torch.stack([sums[name] for name in self._names])

    def count(self, *, sequences: int, frames: int, grad_norm: float, skipped: bool) -> None:
        """Count one update of the global batch; a skipped one adds to nothing but the skips."""
        seen = (0, 0, 0, 1, 0.0) if skipped else (sequences, frames, 1, 0, grad_norm)
        for name, value in zip(_COUNTS, seen, strict=True):
            self._counts[name] += value

    def timed(self, batches: Iterator[Batches]) -> Iterator[Batches]:
        """Pass batches on, and count the time that training stands still for each."""
        while True:
            started_s = time.monotonic()
            with span("data wait"):
                batch = next(batches, None)
            self._data_wait_s += time.monotonic() - started_s
            if batch is None:
                return
            yield batch

    def flush(self, world: World) -> dict[str, float]:
        """Return the means of the window over all workers, and start the next window; all workers must call it."""
        totals = world.sum(self._sums).tolist()
        counts, elapsed_s = self._counts, time.monotonic() - self._timer
        metrics = {"optim/skipped_updates": counts["skipped"]}
        if counts["sequences"]:
            sums = dict(zip(self._names, totals, strict=True))
            metrics["train/kl_nats_per_frame"] = sums["kl_nats"] / counts["frames"]
            if labelled := sums.pop("labels_known", 0.0):
                metrics["train/accuracy"] = sums.pop("labels_correct") / labelled
            metrics |= {f"train/{name}": total / counts["sequences"] for name, total in sums.items()}
            metrics["optim/grad_norm"] = counts["grad_norm"] / counts["updates"]
        updates = counts["updates"] + counts["skipped"]
        metrics["speed/frames_per_s"] = counts["frames"] / elapsed_s
        metrics["speed/step_s"] = elapsed_s / max(1.0, updates)
        metrics["speed/data_wait_s"] = self._data_wait_s / max(1.0, updates)
        self.restore(None)
        return metrics

    def state(self) -> dict[str, Any]:
        """Return what an exact resume in mid-window needs of this worker, as JSON values."""
        return {"sums": self._sums.tolist(), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Start from a saved state, or from zero; speeds always start anew."""
        values = [0.0] * len(self._names) if state is None else state["sums"]
        self._sums = torch.tensor(values, dtype=torch.float64, device=self._sums.device)
        self._counts = dict.fromkeys(_COUNTS, 0.0) if state is None else dict(state["counts"])
        self._timer, self._data_wait_s = time.monotonic(), 0.0


def place_state(states: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """Return the state that this worker takes over: its own, or, at another world size, all of them on rank 0."""
    if len(states) == world_size:
        return states[rank]
    columns = zip(*(state["sums"] for state in states), strict=True)
    sums = [math.fsum(column) if rank == 0 else 0.0 for column in columns]
    return {"sums": sums, "counts": states[0]["counts"]}


class Log:
    """The files of a run that metrics go to; on one worker only."""

    def __init__(self, run_folder: Path, resumed_step: int) -> None:
        """Open for appending after `resumed_step`; lines of later steps belong to lost work and are dropped."""
        from tensorboardX import SummaryWriter

        self._path = run_folder / METRICS
        _drop_after(self._path, resumed_step)
        self._file = self._path.open("a")
        # Two files begun within a second would have one name, and the second would replace the first.
        suffix = f".{time.time_ns():x}"
        self._events = SummaryWriter(str(run_folder), purge_step=resumed_step + 1, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line; values that are no finite number are written as null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "time_s": round(time.time(), 3)} | clean) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, step)
        self._events.flush()  # so that what a kill -9 leaves behind is as long as metrics.jsonl

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._events.close()


def write_result(run_folder: Path, step: int) -> None:
    """Write that a run has finished at `step`, with its last validation and of which step the best one is."""
    validations = [line for line in records(run_folder) if line.get(VALID_ELBO) is not None]
    best = best_validation(validations)
    result = {"state": "finished", "step": step}
    if best is not None:
        result |= {name: value for name, value in validations[-1].items() if name.startswith("valid/")}
        result |= {"best_step": best["step"], "best_valid_elbo_nats": best[VALID_ELBO]}
    atomic_io.write_json(run_folder / RESULT, result)


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [line for line in records(path.parent, say=lambda line: print(line, flush=True)) if line["step"] <= step]
    atomic_io.write(path, "".join(json.dumps(line) + "\n" for line in kept))
