"""Search hyperparameters: `zfdist sweep RECIPE --name NAME --samples K [--grid loss.alpha=0,0.005 ...] ...`.

The same command again goes on: no finished trial is trained again. Ctrl-C (exit code 130) or SIGTERM (0) saves and
stops all trials; a second one aborts.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
from jobs.cli import command
from zfdist.config import Config, ConfigError, parse_value

if TYPE_CHECKING:
    from cluster.sweep.search_space import Space
    from zfdist.checkpoint.run_sync import WorkingCopy


@dataclass(frozen=True)
class SpaceFlags:
    """What is tried; without any of grid, choice, uniform and loguniform a space of the paper's costs."""

    samples: int = 8
    """Random trials, after all combinations of the grid."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE,...: try all combinations; may be given again for another name."""
    choice: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE,...: random trials draw one of these."""
    uniform: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=LOW,HIGH: random trials draw evenly between these."""
    loguniform: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=LOW,HIGH: random trials draw between these, evenly in the logarithm."""
    seed: int = 0
    """Of the random trials' values. (The seed of the runs themselves is --train.seed.)"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Sweep over a search space of a recipe's dotted names; the same command again goes on with it."""

    name: str
    """The sweep's name: its folder is RUNS/NAME."""
    runs: str = command.RUNS
    """Where runs live: a folder that all machines of the cluster share, or a store: s3://BUCKET/PREFIX, gs://..."""
    profile: bool = False
    """Write where the time goes to each trial's folder profile/."""
    space: tyro.conf.OmitArgPrefixes[SpaceFlags] = SpaceFlags()
    address: str | None = None
    """A running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray on this machine."""
    stopping: tyro.conf.OmitArgPrefixes[Stopping] = field(default_factory=Stopping)
    machines: tyro.conf.OmitArgPrefixes[TrialMachines] = field(default_factory=TrialMachines)
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@command.program
def main(argv: Sequence[str], on_accepted: Callable[[], None] = lambda: None) -> int:
    """Run the command line `argv`; return the exit code. `on_accepted` is called once nothing of it was refused."""
    arguments = command.parse(Arguments, "sweep", argv, lambda config: Arguments(name=tyro.MISSING, config=config))
    place = command.run_place(arguments.runs, arguments.name)
    command.refuse_below(arguments.machines, workers_per_trial=1, cpus_per_worker=1, max_concurrent=1)
    command.refuse_below(arguments.stopping, grace_steps=1, reduction_factor=2)
    command.refuse_below(arguments.space, samples=0)
    part = arguments.machines.gpus_per_trial
    if part is not None and not 0 < part <= 1:
        command.refuse(f"--gpus-per-trial {part:g}: must be above 0 and at most 1")
    space = _space(arguments)
    command.check_place(place)
    with command.followed(place, arguments.config.data.cache) as (folder, copy):
        return _sweep(arguments, space, place, folder, copy, on_accepted)


def _sweep(
    arguments: Arguments,
    space: "Space",
    place: str,
    folder: Path,
    copy: "WorkingCopy | None",
    on_accepted: Callable[[], None],
) -> int:
    """Sweep in a folder, which follows the sweep `place` if that is in a store."""
    from cluster.sweep.search_space import prepare

    record = prepare(folder, arguments.config, space, samples=arguments.space.samples, seed=arguments.space.seed)
    command.check_data(arguments.config)

    from cluster import session
    from jobs.cli.sweep_table import Board

    names, steps = space.names(), arguments.config.train.steps
    with session.connect(arguments.address, say=command.say), Board(names, steps) as board:
        from cluster.sweep.driver import sweep
        from cluster.sweep.remote_sweep import SweepStore
        from zfdist.run_options import RunLocation
        from zfdist.signals import was_interrupted

        here = RunLocation(place, command.owner(), Path(arguments.config.data.cache))
        store = None if copy is None else SweepStore(copy, here)
        results = sweep(
            folder,
            arguments.config,
            record,
            SweepPlan(arguments.stopping, arguments.machines, arguments.profile),
            show=board.show,
            on_accepted=on_accepted,
            say=board.say,
            store=store,
        )
    board.print_results(results)
    unfinished = len(record.trials) - sum(result["state"] != "unfinished" for result in results)
    if unfinished:
        command.say(f"{unfinished} of {len(record.trials)} trials are not over; the same command goes on with them")
    if results:
        best = results[0]
        metric = arguments.stopping.metric
        command.say(f"best trial: {best['folder']}, {metric} {best['objective']:,.2f} at step {best['best_step']:,}")
    return command.INTERRUPTED if unfinished and was_interrupted(folder) else command.DONE


def _space(arguments: Arguments) -> "Space":
    """Return the space that the command line tells, or the default one if it tells none; every trial can be."""
    from cluster.sweep.search_space import DEFAULT, Space, trials

    try:
        values = {kind: dict(map(_values, getattr(arguments.space, kind))) for kind in ("grid", "choice")}
        bounds = {
            kind: dict(_bounds(kind, text) for text in getattr(arguments.space, kind))
            for kind in ("uniform", "loguniform")
        }
        told = Space(**values, **bounds)
        space = told if told.names() else DEFAULT
        trials(arguments.config, space, arguments.space.samples, arguments.space.seed)
    except ConfigError as error:
        command.refuse(str(error))
    return space


def _values(text: str) -> tuple[str, tuple[Any, ...]]:
    name, _, values = text.partition("=")
    if not values:
        raise ConfigError(f"{text!r}: must be NAME=VALUE,VALUE,..., e.g. loss.alpha=0,0.005")
    return _dotted(name), tuple(parse_value(_dotted(name), value) for value in values.split(","))


def _bounds(kind: str, text: str) -> tuple[str, tuple[float, float]]:
    name, values = _values(text)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ConfigError(f"--{kind} {text}: must be NAME=LOW,HIGH of a number, e.g. loss.beta=0,0.01")
    return name, (float(values[0]), float(values[1]))


def _dotted(name: str) -> str:
    return name.strip().removeprefix("--").replace("-", "_")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
