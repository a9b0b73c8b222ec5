"""Seconds from a command to the first optimizer step: a run, and the trials of a sweep on a Ray that is warm.

The rival is the same run in a plain Python process, without Ray: what importing torch and DeepSpeed costs anyway.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Options, Table

from zfdist.data.sources.speech import SAMPLE

SIZES = {"demo": None}
PLAIN, ONE, TWO = "plain python, no Ray", "jobs.train, 1 worker", "jobs.train, 2 workers"
FIRST, WARM = "jobs.sweep, first trial", "jobs.sweep, a later trial (from the end of the one before)"
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
    """Yield one table: every way, `repeats` times at most 3, each in a new folder."""
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, ONE, TWO, FIRST, WARM)}
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        data = Path(folder, "data")
        _run(["-m", "jobs.prepare", "speech", "--source", str(SAMPLE), "--out", str(data)], Path(folder))
        for repeat in range(min(options.repeats, 3)):
            for name, measure in _measures(data).items():
                place = Path(folder, f"{repeat}-{len(os.listdir(folder))}")
                place.mkdir()
                for row, value in zip((name, WARM) if name == FIRST else (name,), measure(place), strict=True):
                    seconds[row].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    yield Table(
        "start-up: seconds to the first optimizer step, demo recipe",
        ("way", "s (least .. most)", "x plain"),
        [
            (name, f"{medians[name]:.1f} ({min(v):.1f} .. {max(v):.1f})", f"{medians[name] / medians[PLAIN]:.2f}")
            for name, v in seconds.items()
        ],
        (f"medians of {len(seconds[PLAIN])}",),
    )


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
    command += ["--max-concurrent", "1", "--no-asha", "--data.root", str(data), *_OVERRIDES]
    cold = _first_step(command, place, "runs/s/trials/000")
    end_of_first = _times_s(place / "runs/s/trials/000")[-1]
    return [cold, _times_s(place / "runs/s/trials/001")[0] - end_of_first]


def _first_step(command: list[str], place: Path, run: str) -> float:
    started_s = time.time()
    _run(command, place)
    return _times_s(place / run)[0] - started_s


def _times_s(run: Path) -> list[float]:
    return [float(json.loads(line)["time_s"]) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _run(command: list[str], place: Path) -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
