"""Errors that are a sentence for people: all have the one base, and come whole through a process boundary."""

import ast
import importlib
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfdist.errors import ZfdistError

ROOT = Path(__file__).parents[2]
OTHERS = {"SpotError"}
"""It stands alone, on a machine without the rest of this project."""


def _classes() -> Iterator[tuple[str, str, list[str]]]:
    """Yield module, name and bases of every class whose name says that it is an error."""
    for folder in ("zfdist", "cluster", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                    yield module, node.name, [ast.unparse(base) for base in node.bases]


ERRORS = [(module, name) for module, name, _ in _classes() if name not in OTHERS]


def test_there_are_errors_to_look_at() -> None:
    assert len(ERRORS) > 15


@pytest.mark.parametrize(("module", "name"), ERRORS, ids=[name for _, name in ERRORS])
def test_an_error_has_the_base_and_survives_pickling(module: str, name: str) -> None:
    """As Ray and torch.distributed send it from a worker."""
    kind = getattr(importlib.import_module(module), name)
    assert issubclass(kind, ZfdistError)
    names = inspect.signature(kind).parameters if "__init__" in vars(kind) else ["message"]
    error = kind(*(f"what is wrong with {name}" for name in names))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)
