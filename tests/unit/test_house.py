"""The house rules that no tool checks: sizes of files and functions, empty __init__ files, light front doors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for package in ("zfdist", "cluster", "jobs", "tests") for p in (ROOT / package).rglob("*.py"))


def test_sizes() -> None:
    too_long = []
    for path in SOURCES:
        text = path.read_text()
        if text.count("\n") > 300:
            too_long.append(f"{path}: more than 300 lines; it may be two files")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                too_long += [f"{path}:{node.lineno} {node.name}: {length} lines, more than 60"] * (length > 60)
    assert not too_long, "\n".join(too_long)


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    for path in (path for path in SOURCES if path.name == "__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path}: holds more than a docstring"


def test_jobs_parse_before_they_import_machinery() -> None:
    """So that --help and a typo answer at once."""
    jobs = ", ".join(f"jobs.{job}" for job in ("train", "sweep", "prepare", "evaluate", "generate", "paper", "report"))
    code = f"import sys, {jobs}; print(sorted({{'torch', 'ray', 'deepspeed', 'pyarrow'}} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_private_parts_of_ray_are_used_in_one_file() -> None:
    for path in (path for path in SOURCES if path.is_relative_to(ROOT / "cluster")):
        found = sorted(name for name in _names_of_ray(ast.parse(path.read_text())) if _is_private(name))
        assert not found or path.name == "ray_internals.py", f"{path}: {found} belong into cluster/ray_internals.py"


def _is_private(name: str) -> bool:
    undocumented = ("ray.autoscaler", "ray.core", "ray.scripts", "ray.train.v2._internal")
    return name.startswith(undocumented) or any(
        part.startswith("_") and part != "__version__" for part in name.split(".")
    )


def _names_of_ray(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported from ray, and the dotted names that begin with it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ray")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("ray."):
            yield name


def test_the_file_of_private_parts_is_seen_by_that_test() -> None:
    tree = ast.parse((ROOT / "cluster/ray_internals.py").read_text())
    assert {"ray._private.state", "ray._raylet"} <= set(filter(_is_private, _names_of_ray(tree)))


def test_import_contracts() -> None:
    out = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout
