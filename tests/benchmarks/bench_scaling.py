"""Weak scaling over hosts of one core each, what checkpoints take, and seconds from `ray up` to the first update.

Hosts are network namespaces with sshd and one CPU each, brought up by `ray up` on ray-cluster.yaml: gradients travel
over TCP between them. Each host brings its own 16 sequences to the global batch. The rival is one plain Python process
without Ray, network or other workers. Needs root; more hosts than the machine has cores say nothing and are left out.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import Options, Table

from zfdist.container import cpus

SIZES = {
    "demo": {"model.hidden": 128, "model.z_dim": 32, "model.mlp_dim": 128},
    "hidden512": {"model.hidden": 512, "model.z_dim": 64, "model.mlp_dim": 256},
}
_PER_HOST = 16
_STEPS = 60
_WARM = 10  # steps before those that are counted
_PLAIN = """
import json, sys
from pathlib import Path
from zfdist.recipes import RECIPES
from zfdist import train, world

class Silent:
    def report(self, metrics, checkpoint_folder): pass
    def should_stop(self): return False
    def progress(self, step): pass

config = RECIPES["demo"]().with_values(json.loads(sys.argv[2]))
train.train(config, Path(sys.argv[1]), world.connect(), Silent())
"""


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size; each number of hosts once, medians over its steps."""
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "cluster")]
    from hosts import Hosts, why_not
    from real_cluster import HEAD, RealCluster

    reason = why_not()
    if reason is not None:
        yield Table("scaling over hosts", ("hosts",), [], (f"not measured: {reason}",))
        return
    names = ["one", "two", "three"][: cpus()]
    with Hosts([HEAD, *names]) as hosts:
        cluster = RealCluster(hosts, names)
        up_s = cluster.up()
        first_step_s: float | None = None
        for size in options.sizes or SIZES:
            runs = {"plain Python, no Ray": _plain(size, cluster.data / "speech", hosts.shared / f"plain-{size}")}
            for count in range(1, len(names) + 1):
                changes = {name.replace(".", "__"): value for name, value in _values(size, count).items()}
                submitted_s = time.time()
                run = cluster.train(f"{size}-{count}", workers=count, **changes)
                if run.wait() != 0:
                    raise RuntimeError(run.said())
                runs[f"{count} host" + "s" * (count > 1)] = _lines(run.folder)
                first_step_s = first_step_s or _lines(run.folder)[0]["time_s"] - submitted_s
            yield _table(size, runs)
    yield Table(
        "a cluster from nothing",
        ("act", "s"),
        [
            ("`zfdist cluster up` until every host is in the cluster", f"{up_s:.0f}"),
            ("from `zfdist cluster submit` to the first optimizer step of a run", f"{first_step_s:.0f}"),
        ],
        ("set-up finds the pinned versions installed, as in an image that brings them",),
    )


def _values(size: str, hosts: int) -> dict[str, int]:
    """Return what differs from the demo recipe: as much work a host for any number of them."""
    every = {"train.log_every": 1, "train.validate_every": _STEPS, "checkpoint.every_steps": _STEPS // 3}
    return SIZES[size] | {"train.steps": _STEPS, "data.global_batch": _PER_HOST * hosts} | every


def _plain(size: str, data: Path, folder: Path) -> list[dict[str, Any]]:
    """Train in one process on one core; return the lines of its metrics."""
    values = _values(size, 1) | {"data.root": str(data)}
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", _PLAIN, str(folder), json.dumps(values)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return _lines(folder)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _table(size: str, runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    rival: float | None = None
    for name, lines in runs.items():
        steps = [line for line in lines if "speed/frames_per_s" in line and line["step"] > _WARM]
        speed = statistics.median(line["speed/frames_per_s"] for line in steps)
        rival = rival or speed
        saves = [line["checkpoint/save_s"] for line in lines if "checkpoint/save_s" in line]
        step_s = statistics.median(line["speed/step_s"] for line in steps)
        save_s = statistics.median(saves)
        rows.append((name, f"{speed:,.0f}", f"{speed / rival:.2f}", f"{step_s * 1e3:.0f}", f"{save_s * 1e3:.0f}"))
    header = ("on", "frames/s", "x plain", "ms a step", "ms a checkpoint stops training")
    return Table(
        f"weak scaling, {size}: {_PER_HOST} sequences a host", header, rows, (f"medians of {_STEPS - _WARM} steps",)
    )
