"""Seconds from a command to the first optimizer step: a run, the trials of a sweep, and by phase on a Ray that is up.

The rival is the same run in a plain Python process, without Ray: what importing torch and DeepSpeed costs anyway. What
a run's log says of its phases is read there, see `zfdist.startup`.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from measure import Options, Table

from zfdist import startup
from zfdist.data.sources.speech import SAMPLE

SIZES = {"demo": None}
PLAIN, ONE, TWO = "plain python, no Ray", "jobs.train, 1 worker", "jobs.train, 2 workers"
FIRST, WARM = "jobs.sweep, first trial", "jobs.sweep, a later trial (from the end of the one before)"
KILLED = "2 workers, one killed"
_STEPS = 2
_OVERRIDES = ["--train.steps", str(_STEPS), "--train.log-every", "1", "--checkpoint.every-steps", str(_STEPS)]
_PLAIN = """
import sys
from pathlib import Path
from zfdist.recipes import RECIPES
from zfdist import train, world

class Silent:
    def report(self, metrics, checkpoint_folder): pass
    def progress(self, step): pass
    def should_stop(self): return False

config = RECIPES["demo"]().with_values({"data.root": sys.argv[1], "train.steps": 2, "train.log_every": 1})
train.train(config, Path("runs/plain"), world.connect(), Silent())
"""


def tables(options: Options) -> Iterator[Table]:
    """Yield two tables: every way, `repeats` times at most 3, each in a new folder."""
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        data = Path(folder, "data")
        _run(["-m", "jobs.prepare", "speech", "--source", str(SAMPLE), "--out", str(data)], Path(folder))
        yield _totals(Path(folder), data, min(options.repeats, 3))
        yield _by_phase(Path(folder), data, min(options.repeats, 3))


def _totals(folder: Path, data: Path, repeats: int) -> Table:
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, ONE, TWO, FIRST, WARM)}
    for _ in range(repeats):
        for name, measure in _measures(data).items():
            for row, value in zip((name, WARM) if name == FIRST else (name,), measure(_new(folder)), strict=True):
                seconds[row].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Table(
        "start-up: seconds to the first optimizer step, demo recipe",
        ("way", "s (least .. most)", "x plain"),
        [
            (name, f"{medians[name]:.1f} ({min(v):.1f} .. {max(v):.1f})", f"{medians[name] / medians[PLAIN]:.2f}")
            for name, v in seconds.items()
        ],
        (f"medians of {repeats}",),
    )


def _by_phase(folder: Path, data: Path, repeats: int) -> Table:
    from cluster import session

    train = ["-m", "jobs.train", "demo", "--name", "a", "--data.root", str(data), *_OVERRIDES]
    measured: dict[str, list[dict[str, float]]] = {"no Ray": [], "1 worker": [], "2 workers": [], KILLED: []}
    with session.connect(None, say=lambda line: None, cpus=2) as address:
        ray = [*train, "--address", address, "--cpus-per-worker", "1"]
        for _ in range(repeats):
            measured["no Ray"].append(_phases([*train, "--no-ray"], _new(folder)))
            measured["1 worker"].append(_phases(ray, _new(folder)))
            measured["2 workers"].append(_phases([*ray, "--workers", "2"], _new(folder)))
            measured[KILLED].append(_phases_after_a_kill([*ray, "--workers", "2"], _new(folder)))
    names = dict.fromkeys(name for column in measured.values() for phases in column for name in phases)
    medians = {
        way: {name: statistics.median(phases[name] for phases in column) for name in names if name in column[0]}
        for way, column in measured.items()
    }
    rows = [(name, *(f"{of[name]:.1f}" if name in of else "" for of in medians.values())) for name in names]
    sums = [statistics.median(sum(phases.values()) for phases in column) for column in measured.values()]
    return Table(
        "start-up by phase on a Ray that is up: seconds to the first optimizer step, demo recipe",
        ("phase", *measured),
        [*rows, ("all", *(f"{total:.1f}" for total in sums))],
        (f"medians of {repeats}; a worker killed with -9: from then to the first step of all",),
    )


def _phases(command: list[str], place: Path) -> dict[str, float]:
    _run(command, place)
    (phases,) = startup.read((place / "runs/a/log.txt").read_text())
    return phases


def _phases_after_a_kill(command: list[str], place: Path) -> dict[str, float]:
    endless = ["--train.steps", "1000000", "--checkpoint.every-steps", "20", "--train.validate-every", "1000000"]
    run = place / "runs/a"
    process = _started([*command, *endless], place)
    try:
        _wait_for(lambda: len(_times_s(run)) > 30, process)
        workers = [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::RayTrainW")]
        killed_s = time.time()
        max(workers, key=lambda worker: worker.pid).kill()
        _wait_for(lambda: len(startup.read((run / "log.txt").read_text())) == 2, process)
        again_s = next(at_s for at_s in reversed(_times_s(run)) if at_s > killed_s)
        phases = startup.read((run / "log.txt").read_text())[1]
        return {"notice": again_s - killed_s - sum(phases.values())} | phases
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _wait_for(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not true():
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[0])
        time.sleep(0.1)


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _measures(data: Path) -> dict[str, Callable[[Path], list[float]]]:
    train = ["-m", "jobs.train", "demo", "--name", "a", "--data.root", str(data), *_OVERRIDES]
    return {
        PLAIN: lambda place: [_first_step(["-c", _PLAIN, str(data)], place, "runs/plain")],
        ONE: lambda place: [_first_step(train, place, "runs/a")],
        TWO: lambda place: [_first_step([*train, "--workers", "2"], place, "runs/a")],
        FIRST: lambda place: _sweep(data, place),
    }


def _sweep(data: Path, place: Path) -> list[float]:
    """Two trials, one after the other."""
    command = ["-m", "jobs.sweep", "demo", "--name", "s", "--samples", "0", "--grid", "loss.alpha=0,0.005"]
    command += ["--trials-at-once", "1", "--scheduler", "none", "--data.root", str(data), *_OVERRIDES]
    cold = _first_step(command, place, "runs/s/trials/000")
    end_of_first = _times_s(place / "runs/s/trials/000")[-1]
    return [cold, _times_s(place / "runs/s/trials/001")[0] - end_of_first]


def _first_step(command: list[str], place: Path, run: str) -> float:
    started_s = time.time()
    _run(command, place)
    return _times_s(place / run)[0] - started_s


def _times_s(run: Path) -> list[float]:
    """Return when each step was made; a last line that is just being written does not count."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [float(json.loads(line)["time_s"]) for line in lines if line.endswith("\n")]


def _run(command: list[str], place: Path) -> None:
    process = _started(command, place)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said}")


def _started(command: list[str], place: Path) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
