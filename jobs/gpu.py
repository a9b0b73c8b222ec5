"""What a GPU does with all this, in ten minutes and two files: `make gpu`, or `zfdist gpu`, in a checkout.

Versions; the tests that need a GPU; short runs by every implementation of the loop over time in every precision,
repeated from one seed and resumed, and compared by bytes; `jobs.bench core`. Each part is a process of its own: what
crashes or hangs is a line of the report. Writes gpu.json and gpu.md, which says what held on this device.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from jobs.cli import command
from zfdist.errors import ZfdistError
from zfdist.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_noise_kernel", "test_triton_recurrence", "test_cuda_graphs", "test_cudnn_persistent")
SIZES = ("timit", "mnist", "blizzard", "imdb")
PROMISES = {
    "two runs of one seed end in equal bytes": "again_is_equal",
    "a run that was cut and resumed ends in the bytes of an unbroken one": "resumed_is_equal",
}
UNDECIDED = ("auto", "measured")  # implementations that are none: the program tries all, and tells
CASE_S = 90.0
"""A case that takes longer hangs."""


@dataclass(frozen=True)
class Arguments:
    """Try everything on this machine's GPU, and write what held: gpu.json and gpu.md."""

    out: Path = Path("gpu-report")
    """Where both files go."""
    minutes: float = 10.0
    """Parts that have not begun by then are left out, and named."""
    cpu: bool = False
    """Try the logic of this command without a GPU: two implementations, a small network, no benchmark."""
    steps: int = 60
    """Steps of the short runs, an even number."""


class Run(NamedTuple):
    """A case of a short run."""

    implementation: str
    precision: str
    zero_stage: int
    once: bool


class Ended(NamedTuple):
    """How a process ended."""

    error: str | None
    seconds: float
    printed: str


@command.program
def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code: 1 if any part failed."""
    arguments = tyro.cli(Arguments, prog="zfdist gpu", args=argv)
    if arguments.steps < 2 or arguments.steps % 2:
        command.refuse(f"--steps {arguments.steps}: must be an even number, 2 or more")
    import torch

    if not arguments.cpu and not torch.cuda.is_available():
        raise ZfdistError("no GPU that torch can use, so nothing was tried; --cpu tries the logic of this command")
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"machine": _machine(arguments.cpu)}
    if not arguments.cpu:
        files = [str(ROOT / "tests/unit" / f"{name}.py") for name in TESTS]
        found["tests"] = _part("tests", [sys.executable, "-m", "pytest", "-n0", *files], deadline_s, 150)._asdict()
    found["runs"] = _runs(arguments, deadline_s)
    if not arguments.cpu:
        bench = [sys.executable, "-m", "jobs.bench", "core", "--repeats", "3", "--size"]
        found["bench"] = {size: _part(f"bench {size}", [*bench, size], deadline_s, 150)._asdict() for size in SIZES}
    (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "gpu.md").write_text(report(found))
    print(f"{arguments.out}/gpu.md and gpu.json")
    return int(any(part["error"] for part in _parts(found)))


def report(found: dict[str, Any]) -> str:
    """Return the report for people: what held on this device, and all figures."""
    runs = found["runs"]
    lines = ["# What held on this device", "", *(f"- {name}: {value}" for name, value in found["machine"].items()), ""]
    for promise, key in PROMISES.items():
        tried = [run for run in runs if run.get(key) is not None]
        broken = [_name(run) for run in tried if not run[key]]
        held = f"{len(tried) - len(broken)} of {len(tried)}" + (f"; not by {', '.join(broken)}" if broken else "")
        lines.append(f"- {promise}: {held}")
    lines += ["", "| run | ELBO, nats | ms a step | again equal | resumed equal | error |", "|---|---|---|---|---|---|"]
    for run in runs:
        figures = [f"{run['elbo_nats']:.4f}", f"{1e3 * run['step_s']:.2f}"] if run["error"] is None else ["", ""]
        equal = [{True: "yes", False: "NO", None: ""}[run.get(key)] for key in ("again_is_equal", "resumed_is_equal")]
        lines.append("| " + " | ".join([_name(run), *figures, *equal, run["error"] or ""]) + " |")
    for run in runs:
        if told := run.get("measured"):
            lines += ["", f"## What {_name(run)} measured", "", "```", *told, "```"]
    texts = {"tests": found["tests"]} if "tests" in found else {}
    for name, part in (texts | {f"bench core, {size}": p for size, p in found.get("bench", {}).items()}).items():
        lines += ["", f"## {name}", "", *([part["error"], ""] if part["error"] else []), "```", part["printed"], "```"]
    return "\n".join(lines) + "\n"


def _runs(arguments: Arguments, deadline_s: float) -> list[dict[str, Any]]:
    data = arguments.out / "data"
    from zfdist.data.sources.speech import SAMPLE

    prepare = [sys.executable, "-m", "jobs.prepare", "speech", "--source", str(SAMPLE), "--out", str(data)]
    prepared = _part("data", prepare, deadline_s, 120)
    if prepared.error:
        return [{"name": "data", "error": prepared.error}]
    result = []
    for run in _cases(arguments.cpu):
        values: dict[str, object] = {
            "data.root": str(data), "model.recurrence": run.implementation, "engine.precision": run.precision,
            "engine.zero_stage": run.zero_stage, "train.steps": arguments.steps, "train.log_every": 5,
            "train.validate_every": arguments.steps, "checkpoint.every_steps": arguments.steps,
        }  # fmt: skip
        if arguments.cpu:
            values |= {"model.hidden": 8, "model.z_dim": 4, "model.mlp_dim": 8, "data.global_batch": 4}
        config, folder = arguments.out / "case.json", arguments.out / "runs"
        config.write_text(RECIPES["demo"]().with_values(values).to_json())
        words = [sys.executable, "-m", "jobs.cli.gpu_case", str(config), str(folder), *(["once"] if run.once else [])]
        ended = _part(_name(run._asdict()), words, deadline_s, CASE_S)
        figures = {} if ended.error else json.loads(ended.printed.splitlines()[-1])
        if run.implementation in UNDECIDED:
            figures["measured"] = _table(ended.printed.splitlines(), "loop over time, ")
        config.unlink()
        result.append(run._asdict() | {"error": ended.error, "seconds": ended.seconds} | figures)
    return result


def _table(printed: list[str], title: str) -> list[str]:
    """Return the line that begins so, and the indented ones right below it."""
    begin = next((i for i, line in enumerate(printed) if line.startswith(title)), len(printed))
    return printed[begin : begin + 1] + list(takewhile(lambda line: line.startswith("  "), printed[begin + 1 :]))


def _cases(cpu: bool) -> list[Run]:
    if cpu:
        return [Run("bptt", "fp32", 0, False), Run("native", "fp32", 1, False), Run("measured", "fp32", 0, True)]
    names = ("reference", "bptt", "graph", "triton")
    whole = [Run("auto", "bf16", 0, once=False)]  # which measures them, and tells the table
    whole += [Run(*case, once=False) for case in product(names, ("fp32", "bf16"), (0, 1))]
    return whole + [Run(name, precision, 0, once=True) for name, precision in product(names, ("tf32", "fp16"))]


def _name(run: dict[str, Any]) -> str:
    return str(run.get("name") or f"{run['implementation']}, {run['precision']}, ZeRO {run['zero_stage']}")


def _part(name: str, words: list[str], deadline_s: float, limit_s: float) -> Ended:
    """Run a part in a process of its own, and say how it ended."""
    limit_s, started_s = min(limit_s, deadline_s - time.monotonic()), time.monotonic()
    if limit_s <= 0:
        return _said(name, Ended("not begun: the time was over", 0.0, ""))
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return _said(name, Ended(f"did not end within {limit_s:.0f} s", limit_s, ""))
    last = ([""] + [line for line in (done.stdout + done.stderr).splitlines() if line.strip()])[-1]
    error = f"exit code {done.returncode}: {last}" if done.returncode else None
    return _said(name, Ended(error, time.monotonic() - started_s, done.stdout.strip()))


def _said(name: str, ended: Ended) -> Ended:
    print(f"{name}: {ended.error or f'{ended.seconds:.0f} s'}", flush=True)
    return ended


def _machine(cpu: bool) -> dict[str, str]:
    import torch

    found = {"python": sys.version.split()[0]}
    for package in ("zfdist", "torch", "triton", "deepspeed", "ray"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    if not cpu:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(cudnn)}
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["GPU"] = subprocess.run(query, capture_output=True, text=True).stdout.strip().replace("\n", "; ")
    return found


def _parts(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*found["runs"], *found.get("bench", {}).values(), *([found["tests"]] if "tests" in found else [])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
