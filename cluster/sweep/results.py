"""What a sweep found: the trials by objective, as their run folders tell it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.sweep.goal import Goal, pareto_front
from cluster.sweep.record import state
from cluster.sweep.search_space import Trial
from zfdist import atomic_io
from zfdist.run_protocol import records


def collect(folder: Path, trials: Sequence[Trial], goal: Goal) -> list[dict[str, Any]]:
    """Return what the run folders say of each trial, best objective first; a trial without validation is left out.

    With requirements a result says whether it is `feasible`, with several objectives whether it is on the `pareto`
    front of those that are.
    """
    results = []
    for t in trials:
        run = folder / "trials" / t.id
        lines = list(records(run))
        best = goal.best(lines)
        if best is None:
            continue
        last = max(line["step"] for line in lines if line.get(goal.first.metric) is not None)
        results.append(
            {"id": t.id, "folder": str(run), "state": state(run) or "unfinished", "step": last}
            | {"values": t.values, "objective": best[goal.first.metric], "best_step": best["step"]}
            | {name: value for name, value in best.items() if name.startswith("valid/")}
            | ({"feasible": goal.is_met(best)} if goal.requirements else {})
        )
    if len(goal.objectives) > 1:
        able = [result for result in results if result.get("feasible", True)]
        for result, is_on in zip(able, pareto_front(goal, [goal.values(r) for r in able]), strict=True):
            result["pareto"] = is_on
    return goal.sorted(results)


def write(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results.json and results.csv, in which each swept name is a column."""
    atomic_io.write_json(folder / "results.json", results)
    if not results:
        return
    flat = [{k: v for k, v in r.items() if k != "values"} | r["values"] for r in results]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    atomic_io.write_csv(folder / "results.csv", [columns, *([row.get(name) for name in columns] for row in flat)])
