"""Runs on a Ray of several nodes, disturbed; started by test_supervision.py as a program of its own.

`ray.cluster_utils.Cluster` makes nodes on this machine that can be killed one by one; its head holds no CPUs. It wants
a main thread and a process without another Ray. There is no dashboard: what is freed must not depend on it. Each drill
prints one line of JSON.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import harness

from zfdist import train
from zfdist.checkpoint import folder as checkpoint
from zfdist.config import Config
from zfdist.run_options import Machines, RunOptions


def config(store: Path, steps: int, save_every: int) -> Config:
    """A small run that tells of itself at every fifth step, and validates only at its end."""
    return harness.tiny_config(
        store, train__steps=steps, train__log_every=5, train__validate_every=steps, checkpoint__every_steps=save_every
    )


def each_step(before: Callable[[Any], None]) -> None:
    """In a worker: call `before` ahead of every update."""
    update = train._update

    def disturbed(run: Any, micro_batches: Any) -> None:
        before(run)
        update(run, micro_batches)

    train._update = disturbed  # type: ignore[assignment]


def slow_work(job: dict[str, Any]) -> Any:
    """What workers do in the drill of machines that come and go: steps take time, as they do in real runs."""
    from cluster.run.worker import work

    each_step(lambda run: time.sleep(0.05))
    return work(job)


def hanging_work(job: dict[str, Any]) -> Any:
    """What workers do in the drill of hangs: one stands still at three steps, each time in another way."""
    from cluster.run.worker import work

    stand_still = {
        ("sleep", 1, 15): lambda: time.sleep(1e6),
        ("interpreter", 0, 35): lambda: ctypes.PyDLL(None).sleep(10**6),  # keeps the lock, unlike time.sleep
        ("stopped", 1, 55): lambda: os.kill(os.getpid(), signal.SIGSTOP),
    }

    def before(run: Any) -> None:
        for (kind, rank, step), hang in stand_still.items():
            mark = job["run"].folder.parent / f"{kind}.done"
            if (run.world.rank, run.step) == (rank, step) and not mark.exists():
                mark.touch()
                hang()

    each_step(before)
    return work(job)


def fitted(
    run: Path,
    config: Config,
    work: Callable[[dict[str, Any]], Any],
    disturb: Callable[[int, list[str]], None] = lambda step, said: None,
    **machines: Any,
) -> dict[str, Any]:
    """Run `fit`, with `disturb` called at each record of its metrics; return what came of it."""
    from cluster.run import attempt
    from cluster.run.fit import fit

    attempt.work = work  # type: ignore[assignment]
    said: list[str] = []
    started = time.monotonic()

    def say(line: str) -> None:
        said.append(line)
        print(f"{time.monotonic() - started:6.1f} {line}", file=sys.stderr, flush=True)

    options = RunOptions(config, run, machines=Machines(**machines))
    outcome = fit(options, on_report=lambda record: disturb(record["step"], said), say=say)
    return {"outcome": list(outcome), "said": said}


def drill_elastic(cluster: Any, store: Path, folder: Path) -> dict[str, Any]:
    """A machine dies, another comes, and is taken away again with notice: 2 -> 1 -> 2 -> 1 workers."""
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    run = folder / "elastic"
    daemon: list[subprocess.Popen[str]] = []
    done: list[str] = []

    def disturb(step: int, said: list[str]) -> None:
        teams = [int(line.split()[1]) for line in said if line.startswith("starting ") and "worker" in line]
        saved = max(checkpoint.steps(run), default=0)
        if teams == [2] and step >= 50 and not done:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            done.append("killed")
        elif teams == [2, 1] and len(done) == 1:
            nodes.append(cluster.add_node(num_cpus=1))
            done.append("added")
        elif teams == [2, 1, 2] and len(done) == 2 and step > saved:
            daemon.append(_spot(cluster, nodes[-1].node_id, folder))
            done.append("taken")
        elif teams == [2, 1, 2, 1] and step > saved:
            (run / "stop").touch()

    result = fitted(run, config(store, 100_000, 20), slow_work, disturb, workers="1:2", max_failures=1, grow_every=1)
    result["daemon"], _ = daemon[0].communicate(timeout=30)
    for node in nodes:
        cluster.remove_node(node)
    return result | {"done": done}


def _spot(cluster: Any, node_id: str, folder: Path) -> "subprocess.Popen[str]":
    """Start the daemon against the EC2 service that the test serves."""
    endpoint = (folder / "endpoint").read_text()
    words = ["--cloud", "aws", "--endpoint", endpoint, "--address", cluster.address, "--node-id", node_id]
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.provision.preemption", *words], stdout=subprocess.PIPE, text=True
    )


def drill_hangs(cluster: Any, store: Path, folder: Path) -> dict[str, Any]:
    """Three ways of standing still."""
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    result = fitted(folder / "hangs", config(store, 70, 10), hanging_work, workers="2", max_failures=3, hang_timeout=10)
    for node in nodes:
        cluster.remove_node(node)
    return result


def drill_sweep(cluster: Any, store: Path, folder: Path) -> dict[str, Any]:
    """Two trials; the machine of one dies, and the next one that it gets is taken away with notice."""
    from cluster.sweep.driver import sweep
    from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
    from cluster.sweep.record import prepare
    from cluster.sweep.search_space import Space

    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    done: list[str] = []
    deadline_s: list[float] = []
    base = config(store, 2000, 100).with_values({"train.validate_every": 100, "train.log_every": 100})
    record = prepare(folder / "sweep", base, Space(grid={"loss.alpha": (0.0, 0.01)}), samples=0, seed=0)
    runs = [folder / "sweep" / "trials" / trial.id for trial in record.trials]

    def begun() -> int:
        return sum(len((run / "log.txt").read_text().splitlines()) for run in runs if (run / "log.txt").exists())

    def disturb(rows: Any) -> None:
        print(f"{[(row.state, row.step) for row in rows]}", file=sys.stderr, flush=True)
        if not done and all(row.step >= 100 for row in rows):
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
            done.append("killed")
        elif len(done) == 1 and begun() > 2:
            _drain(cluster, nodes[-1].node_id, within_s=5)
            deadline_s.append(time.time() + 5)
            done.append("noticed")
        elif len(done) == 2 and time.time() > deadline_s[0]:
            cluster.remove_node(nodes.pop(), allow_graceful=False)  # as the cloud does; Ray itself takes nothing away
            nodes.append(cluster.add_node(num_cpus=1))
            done.append("taken")

    results = sweep(
        folder / "sweep", base, record, SweepPlan(Stopping("none"), TrialMachines(retries=1)), show=disturb, say=print
    )
    for node in nodes:
        cluster.remove_node(node)
    return {"states": [r["state"] for r in results], "done": done}


def _drain(cluster: Any, node_id: str, within_s: float) -> None:

    from cluster import ray_internals
    from cluster.provision.preemption import Notice, drain

    drain(ray_internals.gcs_client(cluster.address), node_id, Notice("a test", time.time() + within_s))


def left_behind() -> list[str]:
    """Return what of the runs is still there: placement groups and actors."""
    import ray
    from ray._private.state import actors

    groups = [g["placement_group_id"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    return groups + [a["ActorClassName"] for a in actors().values() if a["State"] == "ALIVE"]


def main(argv: list[str]) -> None:
    """Run the drills named in argv after the folder and the store."""
    folder, store, names = Path(argv[0]), Path(argv[1]), argv[2:]
    from cluster import session

    for name, value in session._SETTINGS.items():
        os.environ.setdefault(name, value)
    # By default workers are the last that a busy machine gives time to.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    import ray
    import ray.cloudpickle
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.chdir(folder)
    try:
        with session.connect(cluster.address, say=lambda line: None):
            for name in names:
                result = {"elastic": drill_elastic, "hangs": drill_hangs, "sweep": drill_sweep}[name](
                    cluster, store, folder
                )
                time.sleep(3)
                print(json.dumps({"drill": name, "left": left_behind()} | result), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
