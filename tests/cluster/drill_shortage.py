"""Drills on a cluster from zero in which machines do not come, or come and cannot be used."""

import time
from collections.abc import Callable

from demand_times import Times, ended_well, measured
from host_cloud import ON_DEMAND, TYPE, CloudCluster
from real_cluster import HEAD
from waiting import last_lines


def spot_does_not_come(cluster: CloudCluster) -> Times:
    """The cloud has one machine of the type that costs less: after the stated wait the other stands in for the second.

    One that costs less is lost then, and the cloud has no other: again the other type stands in.
    """
    started_s = time.time()
    first = cluster.train("spot-holds", workers=1, train__steps=100_000)
    first.wait_for_step(1)
    cluster.cloud.refuse(TYPE)
    run = cluster.train("spot-gone", workers="1:3", train__steps=20)
    ended_well(run)
    assert f"no machine for 1 worker in {FALLBACK_S} s: asking for {ON_DEMAND}" in run.said(), run.said()
    assert f"asked for 1 x {ON_DEMAND}, 1 starting" in run.said(), run.said()
    assert len(cluster.cloud.since(started_s, "asked for")) == 2, "only what the run cannot begin without"
    lost_s = time.time()
    cluster.hosts.crash(cluster.training_on()[-1])
    first.wait_for(lambda: first.steps[-1][1] > lost_s + 1, "a step on the other type", 300)
    cluster.command("stop", "spot-holds")
    assert first.wait() == 0 and f"asking for {ON_DEMAND}" in first.said(), last_lines(first.said())
    cluster.cloud.refuse()
    return measured(cluster, started_s, run.steps[0][1], time.time())


def spot_does_not_come_for_a_sweep(cluster: CloudCluster) -> Times:
    """As many trials wait as there may be machines, and none comes: one that costs more stands in, for the first."""
    cluster.cloud.refuse(TYPE)
    started_s = time.time()
    sweep = cluster.sweep(
        "spot-gone-sweep", "--samples", "0", "--grid", "loss.alpha=0,0.02,0.05,0.1", "--scheduler", "none"
    )
    assert sweep.wait() == 0, last_lines(sweep.said())
    assert f"no machine for 1 worker in {FALLBACK_S} s: asking for {ON_DEMAND}" in sweep.said(), sweep.said()
    cluster.cloud.refuse()
    return measured(cluster, started_s, None, time.time())


def data_missing(cluster: CloudCluster) -> Times:
    """The machine that comes for a run does not mount the data: one sentence with folder and machine, no second try."""
    cluster.cloud.on_boot = lambda host: host.run("mount", "-t", "tmpfs", "tmpfs", str(cluster.data))
    started_s = time.time()
    run = cluster.train("no-data", workers=1)
    code, over_s = run.wait(), time.time()
    cluster.cloud.on_boot = lambda host: None
    said = run.said()
    (error,) = [line for line in said.splitlines() if "error: " in line]
    asked = cluster.cloud.since(started_s, "asked for")
    assert code == 1 and "Traceback" not in said and said.count("starting 1 worker ") == 1, said
    assert str(cluster.data / "speech") in error and asked[0].name in error, error
    return measured(cluster, started_s, None, over_s)


def token_missing(cluster: CloudCluster) -> Times:
    """The head has no token to give to new machines: none joins, and the run says where the reason is to be read."""
    token = cluster.hosts[HEAD].home / ".ray/auth_token"
    kept = token.read_text()
    token.unlink()
    started_s = time.time()
    try:
        run = cluster.train("no-token", "--wait-for-nodes", "60", workers=1)
        code, said, over_s = run.wait(), run.said(), time.time()
        log = cluster.hosts[HEAD].run("cat", "/tmp/ray/session_latest/logs/monitor.out")
    finally:
        token.write_text(kept)
        token.chmod(0o600)
    assert code == 1 and "Traceback" not in said, said
    assert "on the head" in said and "auth_token" in log, f"{last_lines(said)}\n{last_lines(log)}"
    return measured(cluster, started_s, None, over_s)


def head_lost(cluster: CloudCluster) -> Times:
    """The head loses its power while a machine starts; on a head that is up again the run is resumed by its name."""
    cluster.cloud.is_sold_out = True  # so that it is starting for as long as it takes
    started_s = time.time()
    run = cluster.train("head-lost", workers=1, train__steps=20)
    run.wait_for(lambda: len(cluster.cloud.workers()) == 1, "a machine that is asked for", 120)
    cluster.hosts.crash(HEAD)
    assert run.wait(180) != 0, "the laptop is told"
    cluster.cloud.is_sold_out = False
    cluster.hosts.boot(HEAD)
    cluster.command("up", timeout_s=300)
    again = cluster.start("resume", "head-lost")
    ended_well(again)
    return measured(cluster, started_s, again.steps[0][1], time.time())


FALLBACK_S = 45
"""What the cluster file of the following drills says of its second type."""
SPOT_DRILLS: dict[str, Callable[[CloudCluster], Times]] = {
    "spot does not come": spot_does_not_come,
    "spot does not come for a sweep": spot_does_not_come_for_a_sweep,
}
