"""What a sweep is going to do, said before it does anything: how many trials, why these, how long."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.command import duration
from zfdist.config import Config
from zfdist.run_protocol import METRICS, OVER

if TYPE_CHECKING:
    from cluster.sweep.plan import SweepPlan
    from cluster.sweep.record import SweepRecord

_LOOKED_AT = 50
_SAME = ("model.system", "model.hidden", "model.z_dim", "model.mlp_dim", "data.global_batch", "data.segment_frames")


def lines(place: str, folder: Path, base: Config, record: "SweepRecord", plan: "SweepPlan") -> Iterator[str]:
    """Yield the plan, line by line."""
    from cluster.sweep.record import state

    total = len(record.trials) + record.to_suggest
    over = sum(state(folder / "trials" / trial.id) in OVER for trial in record.trials)
    yield f"plan of {place}: {_plural(total, 'trial')}" + (f", {over} of them over" if over else "")
    yield from _why(base, record, plan)
    steps, grace = base.train.steps, plan.stopping.grace(base)
    stops = {
        "none": "none is stopped early",
        "asha": f"ASHA stops all but one in {plan.stopping.reduction_factor:g} at step {grace:,} and each rung after",
        "hyperband": f"HyperBand stops in three brackets, the first at step {grace:,}",
        "median": f"from step {grace:,} a trial is stopped whose best is below the median of the others' means",
    }
    yield f"  each {steps:,} steps; {stops[plan.stopping.rule(plan.goal)]}"
    yield f"  {_time(place, base, plan, total - over)}"


def _why(base: Config, record: "SweepRecord", plan: "SweepPlan") -> Iterator[str]:
    listed = record.listing
    if listed is None or record.space is None:
        return
    if listed.combinations:
        sizes = " x ".join(str(len(values)) for values in record.space.grid.values())
        yield f"  {_plural(listed.combinations, 'combination')} of the grid ({sizes})"
    if listed.samples and plan.search is None:
        yield f"  {_plural(listed.samples, 'random sample')}"
    elif listed.samples and plan.search is not None:
        begun = f", beginning with {_plural(len(plan.before), 'trial')} of another sweep" * bool(plan.before)
        yield f"  {listed.samples} suggested by Optuna ({plan.search.sampler}) from all that is known by then{begun}"
    if listed.equal:
        yield f"  {listed.equal} of these would train the same as another: each is trained once"
    for name in record.space.names():
        for only in record.space.conditions(name):
            yield f"  {name} is varied only where {only}"


def _time(place: str, base: Config, plan: "SweepPlan", to_come: int) -> str:
    most = to_come * base.train.steps
    work = f"at most {most:,} optimizer steps to come"
    if not to_come:
        return "nothing is left to train"
    budget = "" if plan.time_budget_s is None else f"; it ends after {duration(plan.time_budget_s)} in any case"
    measured = None if "://" in place else measured_step_s(Path(place).parent, base)
    if measured is None:
        return f"{work}; how long is not known, as no run of such a network was timed here{budget}"
    step_s, where = measured
    return f"{work}: {duration(most * step_s)} one at a time, by the {step_s:.3g} s of a step in {where}{budget}"


def measured_step_s(runs: Path, base: Config) -> tuple[float, str] | None:
    """Return what an optimizer step of a network of this size took in a run or trial in `runs`, and in which.

    Those written last are looked at first; None if no such run was timed.
    """
    from zfdist.checkpoint.run_folder import config_of
    from zfdist.run_protocol import records

    found = [*runs.glob(f"*/{METRICS}"), *runs.glob(f"*/trials/*/{METRICS}")]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_LOOKED_AT]
    wanted = {name: value for name, value in base.flat().items() if name in _SAME}
    for path in newest:
        config = config_of(path.parent)
        if config is None or any(config.flat()[name] != value for name, value in wanted.items()):
            continue
        steps_s = [r["speed/step_s"] for r in records(path.parent) if r.get("speed/step_s") is not None]
        if steps_s:
            return statistics.median(steps_s), str(path.parent)
    return None


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")
