"""The flags of a sweep that say what is tried, and how it is compared: text to a space, a goal, a time."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from zfdist.config import Config, ConfigError, Only, parse_value, unknown_name
from zfdist.run_protocol import VALID_ELBO

if TYPE_CHECKING:
    from cluster.sweep.goal import Goal
    from cluster.sweep.search_space import Space

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def space(
    grid: Sequence[str], choice: Sequence[str], uniform: Sequence[str], loguniform: Sequence[str], only: Sequence[str]
) -> "Space":
    """Return the space that the flags tell, or the default one if they tell none; raises ConfigError."""
    from cluster.sweep.search_space import DEFAULT, Space

    told = Space(
        grid=dict(map(_values, grid)),
        choice=dict(map(_values, choice)),
        uniform=dict(_bounds("uniform", text) for text in uniform),
        loguniform=dict(_bounds("loguniform", text) for text in loguniform),
        only=dict(map(_only, only)),
    )
    if told.names():
        for name in told.only:
            if name not in told.names():
                raise ConfigError(f"--only-where {name}: it is not swept, so there is nothing to leave out")
        return told
    if only:
        raise ConfigError("--only-where: give the space too, with --grid, --choice, --uniform or --loguniform")
    return DEFAULT


def goal(metrics: Sequence[str], mode: Literal["max", "min"], requirements: Sequence[str]) -> "Goal":
    """Return what is looked for; raises ConfigError for a metric that no validation writes."""
    from cluster.sweep.goal import Goal, parse_objective, parse_requirement

    objectives = tuple(parse_objective(text, mode) for text in metrics or (VALID_ELBO,))
    names = [objective.metric for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--metric {name}: is given twice")
    return Goal(objectives, tuple(parse_requirement(text) for text in requirements))


def seconds(flag: str, text: str) -> float:
    """Return the seconds in e.g. "2h", "1h30m" or "45s"; raises ConfigError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not total:
        raise ConfigError(f"{flag} {text}: must be a time such as 2h, 1h30m, 45m or 90s")
    return total


def counts(flag: str, text: str) -> tuple[int, int]:
    """Return the two numbers in e.g. "3x5"; raises ConfigError."""
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if found is None or not int(found[1]) or int(found[2]) < 2:
        raise ConfigError(f"{flag} {text}: must be TRIALSxSEEDS with at least 2 seeds, e.g. 3x5")
    return int(found[1]), int(found[2])


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


def _only(text: str) -> tuple[str, Only]:
    """Return the condition in `NAME if OTHER=VALUE,VALUE`."""
    name, word, rest = text.partition(" if ")
    if not word or "=" not in rest:
        raise ConfigError(f"--only-where {text!r}: must be 'NAME if OTHER=VALUE,...'")
    name = _dotted(name)
    if name not in Config().flat():
        raise ConfigError(unknown_name(name, Config().flat()))
    other, values = _values(rest)
    return name, Only(other, values)


def _dotted(name: str) -> str:
    return name.strip().removeprefix("--").replace("-", "_")
