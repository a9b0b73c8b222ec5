"""Search hyperparameters: `zfdist sweep RECIPE --name NAME --samples K [--grid loss.alpha=0,0.005 ...] ...`.

The same command again goes on: no finished trial is trained again. Ctrl-C (exit code 130) or SIGTERM (0) saves and
stops all trials; a second one aborts. `zfdist sweep stop NAME 003` stops one of them.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jobs.cli import command, sweep_options, sweep_plan, sweep_population
from jobs.cli.sweep_options import Options
from zfdist.config import Config
from zfdist.run_protocol import OVER, STOP

if TYPE_CHECKING:
    from cluster.sweep.goal import Goal
    from cluster.sweep.plan import SweepPlan
    from cluster.sweep.record import SweepRecord
    from cluster.sweep.suggest import Search
    from zfdist.checkpoint.run_sync import WorkingCopy


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Sweep over a search space of a recipe's dotted names; the same command again goes on with it."""

    name: str
    """The sweep's name: its folder is RUNS/NAME."""
    runs: str = command.RUNS
    """Where runs live: a folder that all machines of the cluster share, or a store: s3://BUCKET/PREFIX, gs://..."""
    dry_run: bool = False
    """Print the plan and start nothing."""
    options: tyro.conf.OmitArgPrefixes[Options] = field(default_factory=Options)
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True)
class StopArguments:
    """Stop one trial of a sweep, or all of them; what a stopped trial has learned stays in the table."""

    name: Annotated[str, tyro.conf.Positional]
    """Of the sweep."""
    trial: Annotated[str | None, tyro.conf.Positional] = None
    """Its number, e.g. 003, which is over then; without one the whole sweep saves and stops, and can go on."""
    runs: str = command.RUNS
    """Where runs live."""


@command.program
def main(argv: Sequence[str], on_accepted: Callable[[], None] = lambda: None) -> int:
    """Run the command line `argv`; return the exit code. `on_accepted` is called once nothing of it was refused."""
    if argv and argv[0] == "stop":
        return _stop(tyro.cli(StopArguments, prog="zfdist sweep stop", args=list(argv[1:])))
    words = sweep_options.renewed(argv)
    arguments = command.parse(Arguments, "sweep", words, lambda config: Arguments(name=tyro.MISSING, config=config))
    place = command.run_place(arguments.runs, arguments.name)
    sweep_options.refuse_numbers(arguments.options)
    asked = sweep_options.asked(arguments.options, arguments.config, place)
    command.check_place(place)
    with command.followed(place, arguments.config.data.cache) as (folder, copy):
        return _sweep(arguments, asked, place, folder, copy, on_accepted)


def _sweep(
    arguments: Arguments,
    asked: "Search",
    place: str,
    folder: Path,
    copy: "WorkingCopy | None",
    on_accepted: Callable[[], None],
) -> int:
    """Sweep in a folder, which follows the sweep `place` if that is in a store."""
    if copy is not None:
        from cluster.sweep.remote_sweep import fetch_suggestions

        fetch_suggestions(copy)
    if sweep_options.is_population(arguments.options):
        return _population(arguments, asked, place, on_accepted)
    record, plan = sweep_options.prepared(arguments.options, asked, folder)
    command.check_data(arguments.config)
    for line in sweep_plan.lines(command.shown(place), folder, arguments.config, record, plan):
        command.say(line)
    if arguments.dry_run:
        return command.DONE

    from cluster import session
    from jobs.cli.sweep_table import Board

    total = len(record.trials) + record.to_suggest
    names, steps = asked.space.names(), arguments.config.train.steps
    with (
        session.connect(arguments.options.address, say=command.say),
        Board(names, steps, total, plan.goal.objectives) as board,
    ):
        from cluster.sweep.driver import sweep
        from cluster.sweep.remote_sweep import SweepStore
        from zfdist.run_options import RunLocation

        here = RunLocation(place, command.owner(), Path(arguments.config.data.cache))
        store = None if copy is None else SweepStore(copy, here)
        results = sweep(
            folder,
            arguments.config,
            record,
            plan,
            show=board.show,
            on_accepted=on_accepted,
            say=board.say,
            store=store,
        )
        board.print_results(results)
        confirming = sweep_options.to_confirm(arguments.options)
        if confirming is not None and results and not _unfinished(record, folder):
            code = _confirm(arguments, confirming, results, plan, folder, board.say)
            if code is not None:
                return code
    return _said(results, record, plan.goal, folder)


def _population(arguments: Arguments, asked: "Search", place: str, on_accepted: Callable[[], None]) -> int:
    """Train a population, or a schedule that one found; draw what was found."""
    options = arguments.options
    plan = sweep_options.plan(options, asked)
    code = sweep_population.run(
        options, arguments.config, asked, place, plan, dry_run=arguments.dry_run, on_accepted=on_accepted
    )
    if (Path(place) / "schedule.csv").is_file():
        from jobs.reporting import schedule_figure

        schedule_figure.draw(Path(place))
    return code


def _confirm(
    arguments: Arguments,
    confirming: tuple[int, int],
    results: list[dict[str, Any]],
    plan: "SweepPlan",
    folder: Path,
    say: Callable[[str], None],
) -> int | None:
    """Train the best again over other seeds, and say whether they differ; the exit code if that is not over."""
    import dataclasses

    from cluster.sweep import confirm
    from cluster.sweep.budget import spent_s
    from cluster.sweep.driver import sweep
    from cluster.sweep.plan import Stopping
    from cluster.sweep.stopping import passing_on
    from jobs.cli.sweep_table import Board
    from zfdist.signals import was_interrupted

    best, seeds = confirming
    listed = confirm.trials(arguments.config, results[:best], seeds)
    record = confirm.record(listed, list(dict.fromkeys(name for t in listed for name in t.values)))
    plan = dataclasses.replace(plan, stopping=Stopping("none"), search=None, spent_before_s=spent_s(folder))
    say(f"confirming the best {len(results[:best])} over {seeds} seeds each: {len(listed)} runs")
    place = folder / confirm.FOLDER
    with Board(record.tree["names"], arguments.config.train.steps, None, plan.goal.objectives) as board:
        show = passing_on(folder, place, board.show)
        sweep(place, arguments.config, record, plan, show=show, say=board.say)
    left = _unfinished(record, place)
    if left:
        say(f"{left} runs of the confirmation are not over; the same command goes on with them")
        return command.INTERRUPTED if was_interrupted(place) else command.DONE
    found = confirm.standings(place, listed, plan.goal)
    for line in confirm.verdict(found, plan.goal.first):
        say(line)
    confirm.write(place, found, plan.goal.first)
    return None


def _unfinished(record: "SweepRecord", folder: Path) -> int:
    """Return how many trials are not over; what a used up space cannot suggest any more is none."""
    from cluster.sweep.record import state, suggestions

    begun = {trial.id for trial in record.trials} | suggestions(folder).keys()
    left = sum(state(folder / "trials" / trial) not in OVER for trial in begun)
    unsuggested = record.to_suggest - (len(begun) - len(record.trials))
    return left + (unsuggested if (folder / STOP).exists() else 0)


def _said(results: list[dict[str, Any]], record: "SweepRecord", goal: "Goal", folder: Path) -> int:
    """Say how a sweep ended; return the exit code."""
    from zfdist.run_protocol import result
    from zfdist.signals import was_interrupted

    unfinished = _unfinished(record, folder)
    if unfinished:
        command.say(f"{unfinished} trials are not over; the same command goes on with them")
    if results and not results[0].get("feasible", True):
        missed = ", ".join(f"{name} by {by:.3g}" for name, by in goal.misses(results[0]).items() if by > 0)
        command.say(f"no trial keeps to what is required; nearest is {results[0]['folder']}, which misses {missed}")
    elif results:
        best, metric = results[0], goal.first.metric
        command.say(f"best trial: {best['folder']}, {metric} {best['objective']:,.2f} at step {best['best_step']:,}")
    elif not unfinished:
        ended = [found for path in sorted((folder / "trials").iterdir()) if (found := result(path)) is not None]
        reason = next((found["error"] for found in ended if "error" in found), "they were stopped before one")
        command.say(f"none of {len(ended)} trials came to a validation; the first: {reason}")
    return command.INTERRUPTED if unfinished and was_interrupted(folder) else command.DONE


def _stop(arguments: StopArguments) -> int:
    """Stop a trial or a sweep, wherever its driver is."""
    from cluster.sweep.stopping import stop_sweep, stop_trial

    place = command.run_place(arguments.runs, arguments.name)
    if arguments.trial is None:
        stop_sweep(place)
        command.say(f"{command.shown(place)}: all trials save and stop; the command that began it goes on with them")
    else:
        command.say(f"trial {arguments.trial}: {stop_trial(place, arguments.trial)}")
    return command.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
