"""Sections of a config: frozen dataclasses that check their own ranges, and the way to and from nested dicts.

Tried instead of `build` and `_check`, on eight faulty configs: msgspec 0.22 lets an unknown name of a dataclass pass,
and names no range's flag by itself; cattrs 26.2 takes True for a whole number and says "invalid value for type,
expected Annotated". Ranges must be checked in `__post_init__` in any case, for flags and `with_values` as well, so
that either would save the 22 lines of `build` alone, and cost the names that are near.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from zfdist.errors import ZfdistError

T = TypeVar("T")


class ConfigError(ZfdistError):
    """A config that cannot be used; the message names the flag, the value and what would be right."""


@dataclass(frozen=True)
class Between:
    """The closed interval that a number of a config must lie in."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class Section:
    """Range checks shared by all sections; `PATH` is the section's dotted place in the tree."""

    PATH: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name in (f.name for f in dataclasses.fields(self)):  # type: ignore[arg-type]
            _check(f"{self.PATH}.{name}", getattr(self, name), hints[name])


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the message for a dotted name that does not exist, with the nearest ones that do."""
    candidates = list(known)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    near = near or [c for c in candidates if c.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f"unknown config name {name!r}" + (f"; perhaps you meant {near[0]!r}" if near else "")


def _check(path: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless `value` fits the annotation `hint`."""
    between = None
    if typing.get_origin(hint) is Annotated:
        hint, between = typing.get_args(hint)[:2]
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path} = {value!r}: must be one of {', '.join(map(str, typing.get_args(hint)))}")
        return
    is_number = hint is float and isinstance(value, int) and not isinstance(value, bool)
    if not is_number and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{path} = {value!r}: must be {kind_name(hint)}")
    if between is not None and not between.low <= value <= between.high:
        raise ConfigError(f"{path} = {value}: must be {between}")


def kind_name(kind: type) -> str:
    """Return how a message calls values of a type."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, kind.__name__)


def build(kind: type[T], tree: Any, known: Iterable[str], path: str = "") -> T:
    """Make a dataclass from nested dicts; a name that is not among the dotted `known` ones raises ConfigError."""
    if isinstance(tree, kind):
        return tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path or 'config'}: must be an object, got {tree!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in tree:
        if name not in fields:
            raise ConfigError(unknown_name(f"{path}.{name}".lstrip("."), known))
    values = {
        name: build(hints[name], value, known, f"{path}.{name}".lstrip("."))
        if isinstance(hints[name], type) and dataclasses.is_dataclass(hints[name])
        else value
        for name, value in tree.items()
    }
    return kind(**values)


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{path}.{name}".lstrip(".")
        flat |= flatten(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
