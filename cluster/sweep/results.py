"""What a sweep found: the trials by objective, as their run folders tell it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cluster.sweep.search_space import Trial
from cluster.sweep.trial import state
from zfdist import atomic_io
from zfdist.run_protocol import records


def collect(folder: Path, trials: Sequence[Trial], *, metric: str, mode: Literal["max", "min"]) -> list[dict[str, Any]]:
    """Return what the run folders say of each trial, best objective first; a trial without validation is left out."""
    results = []
    sign = -1 if mode == "max" else 1
    for t in trials:
        run = folder / "trials" / t.id
        lines = [line for line in records(run) if line.get(metric) is not None]
        if not lines:
            continue
        best = min(lines, key=lambda line: sign * line[metric])
        results.append(
            {"id": t.id, "folder": str(run), "state": state(run) or "unfinished", "step": lines[-1]["step"]}
            | {"values": t.values, "objective": best[metric], "best_step": best["step"]}
            | {name: value for name, value in best.items() if name.startswith("valid/")}
        )
    return sorted(results, key=lambda result: sign * result["objective"])


def write(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results.json and results.csv, in which each swept name is a column."""
    atomic_io.write_json(folder / "results.json", results)
    if not results:
        return
    flat = [{k: v for k, v in r.items() if k != "values"} | r["values"] for r in results]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    atomic_io.write_csv(folder / "results.csv", [columns, *([row.get(name) for name in columns] for row in flat)])
