"""What another sweep found, as a search that begins may know it: read once, and kept in the new sweep's own file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cluster.sweep.record import FILE, SweepRecord, read_tree
from cluster.sweep.suggest import Known, Search
from zfdist.checkpoint.run_folder import config_of
from zfdist.config import ConfigError
from zfdist.run_protocol import records, result

_SIZED = ("model.parameter_budget", "model.hidden", "model.mlp_dim")
_BESIDE = ("train.seed", "data.root", "data.cache", "checkpoint.", "train.log_every", "engine.threads_per_worker")
"""What two sweeps may differ in beside the space: where things lie, and how often they are said."""


def known(folder: Path, other: Path, search: Search) -> list[Known]:
    """Return what the sweep in `folder` began with; if it was not begun, what the sweep `other` found.

    Raises:
        ConfigError: if `other` is no sweep, or none of its trials lies in the space that is searched.
    """
    kept = (read_tree(folder / FILE) or {}).get("known")
    if isinstance(kept, list):
        return [Known(**item) for item in kept]
    trials = sorted(path for path in other.glob("trials/*") if path.is_dir())
    if not trials:
        raise ConfigError(f"--from-sweep {other}: is no sweep, it has no trials/ with runs")
    found: list[Known] = []
    reason = "none has a validation yet"
    for trial in trials:
        told = _of(trial, search)
        if isinstance(told, Known):
            found.append(told)
        elif told:
            reason = told
    if not found:
        raise ConfigError(f"--from-sweep {other}: none of its {len(trials)} trials can be learned from: {reason}")
    return found


def kept(record: SweepRecord, found: Sequence[Known]) -> SweepRecord:
    """Return the record with what the sweep begins with."""
    return record._replace(tree=record.tree | {"known": [k._asdict() for k in found]})


def _of(trial: Path, search: Search) -> Known | str | None:
    """Return what is known of a trial; a reason if it does not belong to the search, None if it has come to nothing."""
    config, ended = config_of(trial), result(trial)
    if config is None or ended is None:
        return None
    flat, base, space = config.flat(), search.base.flat(), search.space
    names = set(space.names())
    left_out = (*_BESIDE, *_SIZED) if base["model.parameter_budget"] else _BESIDE
    for name, value in base.items():
        if name not in names and flat[name] != value and not name.startswith(left_out):
            return f"{name} is {flat[name]} in {trial}, and {value} here"
    values: dict[str, Any] = space.spoken(flat, flat)
    best = search.goal.best(records(trial))
    if best is None or ended["state"] == "diverged":
        return Known(values, "failed")
    state: Literal["complete", "pruned"] = "complete" if ended["state"] == "finished" else "pruned"
    step = int(ended["step"])
    return Known(values, state, step, search.goal.values(best), search.goal.misses(best))
