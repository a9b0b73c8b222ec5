"""Optuna's samplers as a pure function: (space, what is known, seed, number) -> the next point.

A study is made anew from what is known for every suggestion, with a sampler whose randomness is a function of the seed
and of the trial's number. So nothing is kept but the run folders, and after a kill the same is suggested as without.
"""

import importlib.util
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cluster.sweep.goal import Goal
from cluster.sweep.record import Suggestion
from cluster.sweep.search_space import Space, essence, rounded
from zfdist.config import Config, ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalChoiceType

Sampler = Literal["tpe", "gp", "nsga2"]
_TRIES = 20
_STARTUP_TRIALS = 10
"""That are drawn before there is anything to learn from: Optuna's own default."""
_POPULATION = 20
_FEWEST = 4


class Known(NamedTuple):
    """What is known of a trial when the next is suggested."""

    values: Mapping[str, Any]
    state: Literal["complete", "pruned", "failed", "running"]
    step: int = 0
    objectives: Sequence[float] = ()
    """At the validation that it counts with; none while it runs, or if it failed."""
    misses: Mapping[str, float] = {}
    """By how much it misses each requirement there."""
    notes: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Search:
    """What a suggestion depends on beside what is known."""

    base: Config
    space: Space
    goal: Goal
    sampler: Sampler
    seed: int


def refuse_unavailable(sampler: Sampler) -> None:
    """Raise ConfigError if a sampler needs what is not installed."""
    for needed in ("torch", "scipy") if sampler == "gp" else ():
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                f"--sampler gp: Optuna's needs {needed}, which is not installed; pip install it, or take tpe"
            )


def suggest(search: Search, known: Sequence[Known], number: int) -> Suggestion | None:
    """Return the next point; None if 20 suggestions would all train what another trial does: the space is used up.

    Args:
        search: what is looked for, where and how.
        known: all trials so far, in order.
        number: of this trial, which its randomness depends on.
    """
    flat = search.base.flat()
    tried = {essence(search.base, k.values) for k in known}
    for attempt in range(_TRIES):
        suggestion = _asked(search, known, random.Random(f"{search.seed}/{number}/{attempt}").getrandbits(32), flat)
        if essence(search.base, suggestion.values) not in tried:
            return suggestion
    return None


def _asked(search: Search, known: Sequence[Known], seed: int, flat: Mapping[str, Any]) -> Suggestion:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, ranges = search.space, distributions(search.space, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        directions: list[Literal["minimize", "maximize"]] = [
            "maximize" if o.mode == "max" else "minimize" for o in search.goal.objectives
        ]
        study = optuna.create_study(directions=directions, sampler=_sampler(search, seed))
        study.add_trials([told for k in known if (told := _told(k, ranges)) is not None])
        trial = study.ask()
        drawn: dict[str, Any] = {}
        for name in space.ordered():
            if name in space.spoken(flat, {n: drawn.get(n, flat[n]) for n in space.names()}):
                drawn[name] = _drawn(trial, name, ranges[name])
    notes = {k: v for k, v in study.get_trials(deepcopy=False)[-1].system_attrs.items() if k.startswith("NSGA")}
    return Suggestion(space.spoken(flat, {**flat, **drawn}), notes)


def importance(search: Search, known: Sequence[Known]) -> dict[str, float]:
    """Return how much of the first objective each name accounts for, in parts of 1, most first (PED-ANOVA).

    Each by the trials that have it; empty if fewer than four finished ones are in the space.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA (2023), as Optuna computes it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = distributions(search.space, search.base.flat())
    first = search.goal.first
    complete = [k._replace(objectives=k.objectives[:1], misses={}, notes={}) for k in known if k.state == "complete"]
    told = [trial for k in complete if (trial := _told(k, ranges)) is not None]
    if len(told) < _FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize" if first.mode == "max" else "minimize")
        study.add_trials(told)
        found = optuna.importance.get_param_importances(study)
    return {name: float(part) for name, part in found.items()}


def distributions(space: Space, flat: Mapping[str, Any]) -> dict[str, "BaseDistribution"]:
    """Return the space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in (*space.grid.items(), *space.choice.items()):
        found[name] = CategoricalDistribution(tuple(dict.fromkeys(values)))
    for name, (low, high) in (*space.uniform.items(), *space.loguniform.items()):
        is_log = name in space.loguniform
        if type(flat[name]) is int:
            found[name] = IntDistribution(max(round(low), int(is_log)), round(high), log=is_log)
        else:
            found[name] = FloatDistribution(low, high, log=is_log)
    return found


def _sampler(search: Search, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna import samplers

    if search.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)
    if search.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)
    # A group for each set of names that occur together: else a name that is not in all trials is drawn by itself.
    is_conditional = any(search.space.conditions(name) for name in search.space.names())
    return samplers.TPESampler(
        seed=seed, n_startup_trials=_STARTUP_TRIALS, multivariate=True, group=is_conditional, constant_liar=True
    )


def _drawn(trial: "optuna.Trial", name: str, range_: "BaseDistribution") -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, CategoricalDistribution):
        choices: Sequence[CategoricalChoiceType] = range_.choices
        return trial.suggest_categorical(name, choices)
    if isinstance(range_, IntDistribution):
        return trial.suggest_int(name, range_.low, range_.high, log=range_.log)
    assert isinstance(range_, FloatDistribution)
    value = rounded(trial.suggest_float(name, range_.low, range_.high, log=range_.log), float)
    return min(max(value, range_.low), range_.high)  # four digits may lie outside


def _told(known: Known, ranges: Mapping[str, "BaseDistribution"]) -> "optuna.trial.FrozenTrial | None":
    """Return a trial in Optuna's words; None for one that lies outside of the space, as the grid's base values may."""
    from optuna.trial import TrialState, create_trial

    for name, value in known.values.items():
        if name not in ranges or not _contains(ranges[name], value):
            return None
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
    }
    is_complete = known.state == "complete"
    is_pruned = known.state == "pruned" and len(known.objectives) == 1
    state = TrialState.FAIL if known.state == "pruned" and not is_pruned else states[known.state]
    return create_trial(
        state=state,  # with several objectives Optuna knows no pruned trials, and would raise
        values=list(known.objectives) if is_complete else None,
        params=dict(known.values),
        distributions={name: ranges[name] for name in known.values},
        system_attrs=dict(known.notes),
        intermediate_values={known.step: known.objectives[0]} if is_pruned else None,
        constraints=dict(known.misses) if is_complete or is_pruned else None,
    )


def _contains(range_: "BaseDistribution", value: Any) -> bool:
    try:
        return bool(range_._contains(range_.to_internal_repr(value)))
    except ValueError:
        return False
