"""The options of `zfdist sweep`: what is tried, how it is compared, where it runs; and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
from jobs.cli import command, sweep_space
from zfdist.config import Config, ConfigError

if TYPE_CHECKING:
    from cluster.sweep.record import SweepRecord
    from cluster.sweep.search_space import Space
    from cluster.sweep.suggest import Known, Search


@dataclass(frozen=True)
class SpaceFlags:
    """What is tried; without any of grid, choice, uniform and loguniform a space of the paper's costs."""

    samples: int = 8
    """Trials after all combinations of the grid: drawn at random, or suggested by --search."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE,...: try all combinations; may be given again for another name."""
    choice: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE,...: samples have one of these."""
    uniform: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=LOW,HIGH: samples lie evenly between these."""
    loguniform: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=LOW,HIGH: samples lie between these, evenly in the logarithm."""
    only_where: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """'NAME if OTHER=VALUE,...': vary NAME only there. (What a KL schedule ignores is never varied.)"""
    seed: int = 0
    """Of the samples. (The seed of the runs themselves is --train.seed.)"""
    search: Literal["random", "optuna"] = "random"
    """Where samples come from: drawn at random, or suggested by Optuna from what is known by then."""
    sampler: Literal["tpe", "gp", "nsga2"] = "tpe"
    """Optuna's: multivariate TPE with constant liar, Gaussian process, or NSGA-II."""
    from_sweep: Path | None = None
    """Folder of another sweep, from which --search optuna learns too."""


@dataclass(frozen=True)
class Comparing:
    """What trials are compared by."""

    metric: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """METRIC or METRIC:max|min, a name of metrics.jsonl that validations write; default valid/elbo_nats. Several are
    several objectives, and the first decides who is stopped early."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less is better of a metric that does not say."""
    require: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """METRIC>=NUMBER or METRIC<=NUMBER: validations that do not keep to it come after all that do."""


@dataclass(frozen=True)
class PopulationFlags:
    """Population based training (--scheduler pbt), and what is done with the schedule that it finds."""

    population: int = 8
    """Members, which all train from the first step to the last."""
    interval_steps: int | None = None
    """Optimizer steps between exchanges; None for a tenth of the run."""
    from_schedule: Path | None = None
    """Folder of a sweep by pbt: train its schedule again, and its last values throughout, over --seeds seeds each."""
    seeds: int = 3
    """Of --from-schedule."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that says what a sweep is and how it is run, beside its recipe."""

    space: tyro.conf.OmitArgPrefixes[SpaceFlags] = SpaceFlags()
    comparing: tyro.conf.OmitArgPrefixes[Comparing] = Comparing()
    population: tyro.conf.OmitArgPrefixes[PopulationFlags] = PopulationFlags()
    stopping: tyro.conf.OmitArgPrefixes[Stopping] = field(default_factory=Stopping)
    machines: tyro.conf.OmitArgPrefixes[TrialMachines] = field(default_factory=TrialMachines)
    time_budget: str | None = None
    """E.g. 2h or 45m: then all trials save and stop; counted over all commands that go on with the sweep."""
    address: str | None = None
    """A running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray on this machine."""
    profile: bool = False
    """Write where the time goes to each trial's folder profile/."""
    confirm: str | None = None
    """E.g. 3x5: once the search is over, train its best 3 again over 5 other seeds, and say whether they differ."""


RENAMED = {"--max-concurrent": ["--trials-at-once"], "--asha": ["--scheduler", "asha"]}
RENAMED |= {"--no-asha": ["--scheduler", "none"]}
"""Flags of the first releases, by what is meant today."""


def renewed(argv: Sequence[str]) -> list[str]:
    """Return a command line in which flags of the first releases have today's names."""
    words: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        *others, last = RENAMED.get(flag, [flag])
        words += [*others, last + equals + value]
    return words


def refuse_numbers(options: Options) -> None:
    """Raise UsageError for a number that cannot be."""
    machines = options.machines
    command.refuse_below(machines, workers_per_trial=1, cpus_per_worker=1, trials_at_once=1, retries=0)
    command.refuse_below(options.stopping, grace_steps=1, reduction_factor=2)
    command.refuse_below(options.space, samples=0)
    command.refuse_below(options.population, population=4, interval_steps=1, seeds=2)
    if machines.gpus_per_trial is not None and not 0 < machines.gpus_per_trial <= 1:
        command.refuse(f"--gpus-per-trial {machines.gpus_per_trial:g}: must be above 0 and at most 1")


def asked(options: Options, base: Config, place: str) -> "Search":
    """Return what is looked for and where; refuses what cannot be understood."""
    from cluster.sweep.suggest import Search, refuse_unavailable

    flags, comparing = options.space, options.comparing
    try:
        space = sweep_space.space(flags.grid, flags.choice, flags.uniform, flags.loguniform, flags.only_where)
        goal = sweep_space.goal(comparing.metric, comparing.mode, comparing.require)
        if flags.search == "optuna":
            refuse_unavailable(flags.sampler)
        elif flags.from_sweep is not None:
            raise ConfigError("--from-sweep: random samples learn from nothing; add --search optuna")
        if is_population(options):
            _refuse_population(options, base, space, place)
        else:
            _refuse_space(options, base, space)
        _budget_s(options)
        if to_confirm(options) is not None and "://" in place:
            raise ConfigError("--confirm: goes with a folder that machines share, not with --runs in a store yet")
    except ConfigError as error:
        command.refuse(str(error))
    return Search(base, space, goal, flags.sampler, flags.seed)


def _refuse_space(options: Options, base: Config, space: "Space") -> None:
    from cluster.sweep.search_space import refuse_bounds, trials

    if options.space.search == "random":
        trials(base, space, options.space.samples, options.space.seed)
    elif not options.space.samples and not space.grid:
        raise ConfigError("nothing to try: give --samples, or a --grid")
    refuse_bounds(base, space)


def is_population(options: Options) -> bool:
    """Return whether trials follow from each other, generation by generation."""
    return options.stopping.scheduler == "pbt" or options.population.from_schedule is not None


def interval(options: Options, base: Config) -> int:
    """Return the optimizer steps between exchanges of a population."""
    return options.population.interval_steps or max(1, base.train.steps // 10)


def _refuse_population(options: Options, base: Config, space: "Space", place: str) -> None:
    from cluster.sweep import population

    if "://" in place:
        raise ConfigError("--scheduler pbt: goes with a folder that machines share, not with --runs in a store yet")
    if options.space.search != "random" or options.confirm is not None:
        raise ConfigError("--scheduler pbt: draws its own values; leave --search and --confirm out")
    if options.comparing.require or len(options.comparing.metric) > 1:
        raise ConfigError("--scheduler pbt: members are compared by one number; give one --metric, and no --require")
    if options.population.from_schedule is None:
        population.refuse(base, space, options.population.population, interval(options, base))


def prepared(options: Options, asked: "Search", folder: Path) -> "tuple[SweepRecord, SweepPlan]":
    """Return the sweep's trials, and how it is run."""
    from cluster.sweep import from_sweep, record
    from cluster.sweep.goal import as_tree

    flags = options.space
    learns = flags.search == "optuna"
    prepared = record.prepare(
        folder,
        asked.base,
        asked.space,
        samples=flags.samples,
        seed=flags.seed,
        sampler=flags.sampler if learns else None,
    )
    prepared = prepared._replace(tree=prepared.tree | {"goal": as_tree(asked.goal)})
    before = []
    if flags.from_sweep is not None:
        before = from_sweep.known(folder, flags.from_sweep, asked)
        prepared = from_sweep.kept(prepared, before)

    return prepared, plan(options, asked, before)


def plan(options: Options, asked: "Search", before: "Sequence[Known]" = ()) -> SweepPlan:
    """Return how a sweep is run; `before` is what its search knows from elsewhere."""
    return SweepPlan(
        options.stopping,
        options.machines,
        options.profile,
        asked.goal,
        search=asked if options.space.search == "optuna" else None,
        before=before,
        time_budget_s=_budget_s(options),
    )


def to_confirm(options: Options) -> tuple[int, int] | None:
    """Return how many of the best trials are trained again, and over how many seeds; None for none."""
    return None if options.confirm is None else sweep_space.counts("--confirm", options.confirm)


def _budget_s(options: Options) -> float | None:
    return None if options.time_budget is None else sweep_space.seconds("--time-budget", options.time_budget)
