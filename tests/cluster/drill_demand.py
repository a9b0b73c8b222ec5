"""Drills on a cluster that begins as a head alone: machines come because a job asks for them, and go with it.

As a program it runs them, or those that are named, and prints a table: `make drills`.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "cluster"), str(tests), str(tests.parent)]

import drill_shortage
from demand_times import Times, ended_well, measured
from followed_run import Run
from host_cloud import CloudCluster, cluster_from_zero
from hosts import why_not
from real_cluster import HEAD
from waiting import last_lines, wait_for


def from_zero(cluster: CloudCluster, name: str = "from-zero", workers: int | str = 1, steps: int = 20) -> Times:
    """A run on a cluster without workers ends well, and leaves it so."""
    started_s = time.time()
    run = cluster.train(name, workers=workers, train__steps=steps)
    ended_well(run)
    return measured(cluster, started_s, run.steps[0][1], time.time())


def sweep_from_zero(cluster: CloudCluster) -> Times:
    """A sweep of six trials: as many at a time as machines may come, and these go when no trial is left for them."""
    started_s = time.time()
    words = ["--samples", "0", "--grid", "loss.alpha=0,0.05", "--grid", "loss.beta=0,0.02,0.05", "--scheduler", "none"]
    sweep = cluster.sweep("swept-from-zero", *words)
    assert sweep.wait() == 0, last_lines(sweep.said())
    over_s = time.time()
    results = json.loads((sweep.folder / "results.json").read_text())
    assert [result["state"] for result in results] == ["finished"] * 6, results
    first_s = min(
        json.loads((trial / "metrics.jsonl").read_text().splitlines()[0])["time_s"]
        for trial in (sweep.folder / "trials").iterdir()
    )
    times = measured(cluster, started_s, first_s, over_s)
    assert times.most == len(cluster.workers), "every machine that may come is used"
    return times


def two_jobs(cluster: CloudCluster) -> Times:
    """Two runs at once: each gets its machine, and what one asks for does not replace what the other does."""
    started_s = time.time()
    runs = [cluster.train(f"both-{name}", workers=1, train__steps=100) for name in ("a", "b")]
    wait_for(lambda: len(cluster.cloud.workers()) == 2, "two machines", 120)
    for run in runs:
        ended_well(run)
    first_s = min(run.steps[0][1] for run in runs)
    return measured(cluster, started_s, first_s, time.time())


def command_killed(cluster: CloudCluster) -> Times:
    """Kill -9 of a command, once while it waits and once while it trains: its demand and machines go."""
    cluster.cloud.is_sold_out = True
    started_s = time.time()
    waiting = cluster.train("killed-waiting", workers=2)
    waiting.wait_for(lambda: len(cluster.cloud.workers()) == 2, "two machines that are asked for", 120)
    cluster.hosts[HEAD].kill("jobs.cli.job_entrypoint")
    waiting.wait(60)
    cluster.cloud.is_sold_out = False  # what was asked for comes now, and is not needed
    cluster.wait_for_zero()
    run = cluster.train("killed", workers=2, train__steps=100_000)
    run.wait_for_step(5)
    cluster.hosts[HEAD].kill("jobs.cli.job_entrypoint")
    over_s = time.time()
    assert run.wait(60) != 0, "the laptop is told"
    return measured(cluster, started_s, run.steps[0][1], over_s)


def never_comes(cluster: CloudCluster) -> Times:
    """A machine is asked for that never comes up: the command says so while it waits, and gives up in a sentence."""
    cluster.cloud.is_sold_out = True
    started_s = time.time()
    run = cluster.train("in-vain", "--wait-for-nodes", "20", workers=2)
    code, said, over_s = run.wait(120), run.said(), time.time()
    cluster.cloud.is_sold_out = False
    assert code == 1 and "asked for 2 x cpu, 2 starting, " in said, last_lines(said)
    assert "error: 2 workers of 1 CPU each needed, room for 0 on 1 machine with 0 CPUs and no GPU: " in said, said
    assert "Traceback" not in said, said
    return measured(cluster, started_s, None, over_s)


def too_much(cluster: CloudCluster) -> Times:
    """What no machine of the cluster's types holds, or not as many as may come, is refused at once and by name."""
    started_s = time.time()
    wide = cluster.train("too-wide", "--cpus-per-worker", "2", workers=1)
    many = cluster.train("too-many", workers=64)
    assert wide.wait(60) == 1 and many.wait(60) == 1
    assert "a worker of 2 CPUs fits no machine: " in wide.said() and "(cpu: 1 CPU and no GPU)" in wide.said(), (
        wide.said()
    )
    count = len(cluster.workers)
    assert f"at most {count} more may come (cpu: 1 CPU and no GPU), room for {count}" in many.said(), many.said()
    assert not cluster.cloud.since(started_s, "asked for")
    return Times(None, None, None, 0)


def grows(cluster: CloudCluster) -> Times:
    """`--workers 1:3`: starts with what comes first, grows as more come, shrinks with a loss and asks for another."""
    started_s = time.time()
    run = cluster.train("grows", "--grow-every", "5", workers="1:3", train__steps=100_000)
    run.wait_for(lambda: _teams(run)[-1:] == [3], "three workers", 300)
    run.wait_for(lambda: len(cluster.training_on()) == 3, "training on three machines", 60)
    step = run.steps[-1][0] if run.steps else 0
    run.wait_for_step(step + 20)
    lost_s = time.time()
    cluster.hosts.crash(cluster.training_on()[-1])
    run.wait_for(lambda: _teams(run)[-1:] in ([1], [2]), "fewer workers", 120)
    run.wait_for(lambda: bool(cluster.cloud.since(lost_s, "asked for")), "a machine for the one that is lost", 120)
    run.wait_for(lambda: _teams(run)[-1:] == [3], "three workers again", 300)
    run.wait_for(lambda: run.steps[-1][1] > lost_s, "a step", 60)
    cluster.command("stop", "grows")
    assert run.wait() == 0, last_lines(run.said())
    return measured(cluster, started_s, run.steps[0][1], time.time())


def lost_while_starting(cluster: CloudCluster) -> Times:
    """A machine is lost while the workers start: named, all is freed, and the run goes on with what is left."""
    started_s = time.time()
    run = cluster.train("lost-starting", "--grow-every", "100000", workers="1:3", train__steps=60)
    run.wait_for(lambda: _teams(run)[-1:] == [3], "three workers that start", 300)
    run.wait_for(lambda: len(cluster.training_on()) == 3, "their processes", 60)
    lost = cluster.training_on()[-1]
    cluster.hosts.crash(lost)
    ended_well(run)
    assert f"{cluster.hosts[lost].address} was lost" in run.said() or f"on {cluster.hosts[lost].address}" in run.said()
    left = cluster.leftovers(run.folder)
    assert not left, left
    return measured(cluster, started_s, run.steps[0][1], time.time())


DRILLS: dict[str, Callable[[CloudCluster], Times]] = {
    "from zero": from_zero,
    "too much asked for": too_much,
    "a sweep of 6 from zero and back": sweep_from_zero,
    "two jobs at once": two_jobs,
    "command killed, waiting and training": command_killed,
    "a machine that never comes": never_comes,
    "--workers 1:3, with a loss": grows,
    "a machine lost while workers start": lost_while_starting,
    "a new machine without the data": drill_shortage.data_missing,
    "new machines without a token": drill_shortage.token_missing,
    "the head lost while a machine starts": drill_shortage.head_lost,
}


def _teams(run: Run) -> list[int]:
    """Return the number of workers of each launch."""
    return [int(line.split()[1]) for line in run.said().splitlines() if line.startswith("starting ")]


def main(names: list[str]) -> int:
    """Run the drills, all if none is named; print a line for each and return how many failed."""
    if why_not() is not None:
        print(f"no drills: {why_not()}")
        return 0
    failed = 0
    print("drill | s to the first machine asked for | s to the first step | s from the end to none | machines")
    for drills, fallback_s in ((DRILLS, None), (drill_shortage.SPOT_DRILLS, drill_shortage.FALLBACK_S)):
        chosen = [name for name in names or drills if name in drills]
        if chosen:
            with cluster_from_zero(["one", "two", "three"], fallback_s) as cluster:
                failed += sum(not _goes_well(cluster, name, drills[name]) for name in chosen)
    return failed


def _goes_well(cluster: CloudCluster, name: str, drill: Callable[[CloudCluster], Times]) -> bool:
    """Run a drill and print its line; return whether all was as it should be."""
    try:
        times = drill(cluster)
    except Exception:  # the other drills go on
        traceback.print_exc()
        print(f"{name} | FAILED", flush=True)
        cluster.mend_cloud()
        return False
    figures = ("" if value is None else f"{value:.1f}" for value in times[:3])
    print(" | ".join([name, *figures, str(times.most)]), flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
