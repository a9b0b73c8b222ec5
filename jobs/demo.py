"""The main job on real input, from start to end: `make demo`, or `zfdist demo`.

Runs four commands that a user would type, and prints each: prepare the speech sample that ships, sweep over alpha, beta
and KL annealing, evaluate the best trial on the test split, write a report. Each goes on where it was interrupted,
and so does this: start it again.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jobs import evaluate, prepare, report, sweep
from jobs.cli import command
from jobs.cli.command import RUNS, duration

DATA = Path("data/demo")
SWEEP = Path(RUNS) / "demo"
REPORT = SWEEP / "report"
SPACE = ("--grid", "loss.alpha=0,0.5", "--grid", "loss.beta=0,0.05", "--grid", "loss.kl.kind=constant,linear")
# Late enough that the figure of the KL term has something of every trial.
ASHA = ("--grace-steps", "600", "--reduction-factor", "2")


@dataclass(frozen=True)
class Arguments:
    """Train, compare and hear Z-Forcing on seven minutes of speech: minutes on two CPU cores."""

    overrides: tyro.conf.Positional[tuple[str, ...]] = ()
    """More for the sweep, after `--`, e.g. `zfdist demo -- --train.steps 100`."""


@command.program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist demo", args=argv)
    from zfdist.data.sources.speech import SAMPLE

    started_s = time.monotonic()
    _phase(1, "speech to Arrow shards", prepare.main, ["speech", "--source", str(_shown(SAMPLE)), "--out", str(DATA)])
    swept = ["demo", "--name", SWEEP.name, "--data.root", str(DATA), "--samples", "0", *SPACE, *ASHA]
    _phase(2, "a sweep: with and without auxiliary costs and KL annealing", sweep.main, [*swept, *arguments.overrides])
    results = json.loads((SWEEP / "results.json").read_text())
    if not results or any(result["state"] == "unfinished" for result in results):  # it was asked to stop
        print("\nnot all trials are over; `make demo` goes on from here")
        raise SystemExit(command.REFUSED)
    best = results[0]
    _phase(3, "the best trial on the test split", evaluate.main, [best["folder"], "--json", str(SWEEP / "test.json")])
    _phase(4, "figures, tables and sound", report.main, [str(SWEEP), "--out", str(REPORT)])
    print(_next(results, time.monotonic() - started_s))


def _phase(number: int, title: str, job: Callable[[list[str]], int], argv: Sequence[str]) -> None:
    """Say what is done and with which command, do it, and end the demo with its exit code if it fails."""
    verb = job.__module__.rpartition(".")[2]
    print(f"\n[{number}/4] {title}\n$ zfdist {verb} {shlex.join(argv)}", flush=True)
    code = job(list(argv))
    if code:
        raise SystemExit(code)


def _next(results: Sequence[dict[str, Any]], took_s: float) -> str:
    """Return the last words: where the report is, which trial was the best, and what to try."""
    best = results[0]
    knobs = ", ".join(f"{name.removeprefix('loss.')} {value}" for name, value in best["values"].items())
    venv = Path(sys.prefix)
    activate = "" if os.environ.get("VIRTUAL_ENV") == sys.prefix else f", after `source {_shown(venv)}/bin/activate`"
    return f"""
done in {duration(took_s)}.

The report: {REPORT}/report.html
  open it in a browser, offline as well, to see the curves and to hear what the best trial generates

The best of {len(results)} trials: {Path(best["folder"]).name}, with {knobs}
  on validation it gives whole utterances an ELBO of {best["valid/elbo_nats"]:,.0f} nats on average, at step \
{best["best_step"]:,}

Three commands to try next{activate}:
  zfdist train demo --name longer --workers 2 --train.steps 4000
  zfdist train demo --name continued --from {best["folder"]} --train.steps 600
  tensorboard --logdir {SWEEP}/trials
"""


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
