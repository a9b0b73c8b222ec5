"""`zfdist sweep --scheduler pbt`, and `--from-schedule`: a population on the screen, and what it found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli import command, sweep_options
from jobs.cli.sweep_options import Options
from zfdist.config import Config

if TYPE_CHECKING:
    from cluster.sweep.goal import Objective
    from cluster.sweep.plan import SweepPlan
    from cluster.sweep.population import Member
    from cluster.sweep.suggest import Search


def run(
    options: Options,
    base: Config,
    asked: "Search",
    place: str,
    plan: "SweepPlan",
    *,
    dry_run: bool,
    on_accepted: Callable[[], None],
) -> int:
    """Train a population, or a schedule again; return the exit code."""
    from cluster.sweep import population
    from cluster.sweep.record import prepare_population

    folder, flags, first = Path(place), options.population, plan.goal.first
    if flags.from_schedule is None:
        until = population.ends(base.train.steps, sweep_options.interval(options, base))
        following = population.evolving(base, asked.space, first, flags.population, asked.seed)
        how = {"the sweep's population": flags.population, "the sweep's generations end at": until}
        size = flags.population
    else:
        until, following = population.following_schedule(flags.from_schedule, base, flags.seeds)
        values = [m.values for number in range(len(until)) for m in following(number, [])]
        how, size = {"the sweep's schedule": [str(v) for v in values]}, 2 * flags.seeds
    record = prepare_population(folder, base, asked.space, how, seed=asked.seed)
    command.check_data(base)
    what = (
        "a population" if flags.from_schedule is None else f"the schedule of {flags.from_schedule} and its last values"
    )
    command.say(f"plan of {place}: {what}, {size} runs of {until[-1]:,} steps in {len(until)} generations")
    command.say(f"  {size * until[-1]:,} optimizer steps; exchanges at {', '.join(map(str, until[:-1])) or 'no step'}")
    if dry_run:
        return command.DONE

    from cluster import session
    from cluster.sweep.evolution import evolve
    from jobs.cli.sweep_table import Board

    with session.connect(options.address, say=command.say):
        record.write(folder)
        on_accepted()
        names = list(following(0, [])[0].values)

        def board(end: int) -> Board:
            return Board(names, end, size, plan.goal.objectives)

        lineage = evolve(folder, base, until, following, plan, board=board, say=command.say)
    if lineage is None:
        return _stopped(folder)
    line = population.write(folder, lineage, until, first)
    _say_found(line, until, first)
    if flags.from_schedule is not None:
        _compare(lineage[-1], first)
    return command.DONE


def _stopped(folder: Path) -> int:
    from cluster.sweep.population import GENERATIONS
    from zfdist.signals import was_interrupted

    command.say("the last generation is not over; the same command goes on")
    newest = sorted((folder / GENERATIONS).iterdir())[-1]
    return command.INTERRUPTED if was_interrupted(newest) else command.DONE


def _say_found(line: "Sequence[Member]", until: Sequence[int], objective: "Objective") -> None:
    if not line:
        command.say("no member came to the end: all diverged in the last generation")
        return
    command.say(f"the best member of the end has {objective.metric} {line[-1].objective:.5g}, and was trained with")
    for since, end, m in zip([0, *until], until, line, strict=False):
        values = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in m.values.items()
        )
        command.say(f"  steps {since:>6,} to {end:>6,}: {values}   (member {m.id})")


def _compare(last: "Sequence[Member]", objective: "Objective") -> None:
    """Say whether the schedule is better than its last values throughout, by seeds in pairs."""
    from cluster.sweep.confirm import Standing, verdict

    found = []
    for way in ("schedule", "constant"):
        by_seed = {
            m.values["train.seed"]: m.objective for m in last if m.id.startswith(way) and m.objective is not None
        }
        if by_seed:
            found.append(Standing(way, {}, by_seed))
    found.sort(key=lambda standing: objective.loss(standing.mean))
    for said in verdict(found, objective):
        command.say(said)
