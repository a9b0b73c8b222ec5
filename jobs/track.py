"""Show runs in a tracker: `zfdist track RUN ... --to mlflow|wandb`: config, metrics, report and samples.

It reads what is in the run folders, so that training needs to know nothing of it, and finished runs, sweeps and runs in
a store go as well. How far each was told stands in its folder: started again it repeats nothing.
"""

import hashlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs.cli import command
from jobs.tracking.tracker import Position, TrackedRun, Tracker, untold

if TYPE_CHECKING:
    from jobs.reporting.run_history import History


@dataclass(frozen=True)
class Arguments:
    """Tell a tracker of runs, and go on with that while they do; Ctrl-C ends the telling, never a run."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders or URIs of runs, and of sweeps for all their trials."""
    to: Literal["mlflow", "wandb"]
    """Which tracker; each is an extra: pip install 'zfdist[mlflow]'."""
    project: str = "zfdist"
    """Its project; MLflow calls it an experiment."""
    url: str | None = None
    """Of its server; None for what the tracker's own settings say, e.g. MLFLOW_TRACKING_URI."""
    once: bool = False
    """Tell what there is and end, also while runs go on."""
    report: bool = True
    """Make a report of each run that is over, with samples, and keep it with the run."""
    every: float = 10.0
    """Seconds between two looks at the runs."""


@command.program
def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    arguments = tyro.cli(Arguments, prog="zfdist track", args=argv)
    if not arguments.runs:
        command.refuse("name at least one run or sweep folder")
    command.refuse_below(arguments, every=1)
    try:
        tracker = importlib.import_module(f"jobs.tracking.to_{arguments.to}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != arguments.to:
            raise
        command.refuse(f"--to {arguments.to}: is not installed here; pip install 'zfdist[{arguments.to}]'")
    telling: dict[str, Tracker] = {}
    try:
        while not _tell(arguments, tracker, telling) and not arguments.once:
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        command.say("the same command goes on from here")
        return command.INTERRUPTED
    finally:
        for begun in telling.values():
            begun.end("unfinished")
    return command.DONE


def _tell(arguments: Arguments, module: Any, telling: dict[str, Tracker]) -> bool:
    """Tell the tracker all that is new of all runs; return whether all are over."""
    from jobs.reporting import run_history
    from zfdist.checkpoint import fetch

    folders = [fetch.local(run) for run in arguments.runs]
    histories = run_history.read(folders)
    for history in histories:
        file, is_over = history.folder / f".told-{arguments.to}.json", history.state != "unfinished"
        position, ended = _told(file)
        new = list(untold(history.records, position))
        if not history.records or not (new or (is_over and ended != history.state)):
            continue
        run = _tracked(history)
        if run.id not in telling:
            telling[run.id] = module.begin(run, arguments.project, arguments.url)
            command.say(f"telling {arguments.to} of {run.name} from step {max(0, position.step)} on")
        tracker = telling[run.id]
        for step, time_s, metrics, _ in new:
            tracker.log(step, time_s, metrics)
        tracker.flush()
        position = new[-1][3] if new else position
        _write(file, position, ended)
        if is_over:
            if arguments.report:
                _report(history, tracker)
            telling.pop(run.id).end(history.state)
            _write(file, position, history.state)
            command.say(f"{run.name} is {history.state}, and all of it told")
    return all(map(has_begun_all, folders)) and all(history.state != "unfinished" for history in histories)


def has_begun_all(folder: Path) -> bool:
    """Return whether no further runs are to come in a folder: a sweep that searches lists its trials as it goes."""
    return not (folder / "sweep.json").exists() or (folder / "results.json").exists()


def _tracked(history: "History") -> TrackedRun:
    """Return what a tracker should call a run: its id comes from when it began, which all copies of it say."""
    begun = f"{history.name} {history.records[0].get('time_s')}"
    sweep = history.folder.resolve().parent.parent.name if history.is_trial else ""
    name = f"{sweep}-{history.name}" if sweep else history.name
    return TrackedRun(hashlib.sha256(f"{sweep} {begun}".encode()).hexdigest()[:16], name, sweep, history.config.flat())


def _report(history: "History", tracker: Tracker) -> None:
    from jobs import report

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report")
        report.write([history.folder], out, say=lambda line: None)
        tracker.add(out)


def _told(file: Path) -> tuple[Position, str]:
    """Return how far a run was told, and the end of it that was; nothing, where the file is not there or torn."""
    try:
        found = json.loads(file.read_text())
        return Position(found["step"], tuple(found["names"])), str(found["state"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Position(), ""


def _write(file: Path, position: Position, state: str) -> None:
    from zfdist import atomic_io

    atomic_io.write_json(file, {"step": position.step, "names": position.names, "state": state})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
