"""Drills in which machines, networks and processes fail."""

import json
import time

from drills import AT, EVERY, LOST, Result, bit_equal, disturbed, finish, losses_agree, undisturbed
from followed_run import Run
from hosts import Host
from real_cluster import HEAD, RealCluster

from zfdist.checkpoint import folder as checkpoint

# More to compute a step, that a machine has the time to come back; and a learning rate at which the rounding of another
# number of workers is not amplified: at the recipe's, losses that differ by 1e-7 differ by 4e-2 after 250 steps.
SLOW = {"model__hidden": 128, "data__global_batch": 32, "optim__learning_rate": 1e-4, "train__steps": 600}
_SPARE = ["--wait-for-nodes", "60"]


def worker_killed(cluster: RealCluster) -> Result:
    """Kill -9 of a worker process, as the kernel's out-of-memory killer does."""
    run = cluster.train("worker-killed")
    return disturbed(cluster, run, lambda: _last(cluster).kill("RayTrainWorker"))


def host_crashed_with_spare(cluster: RealCluster) -> Result:
    """A machine that trains loses its power; another one is idle."""
    run = cluster.train("host-crashed", *_SPARE)
    result = disturbed(cluster, run, lambda: cluster.hosts.crash(_last(cluster).name))
    cluster.mend()
    return result


def network_partition(cluster: RealCluster) -> Result:
    """The cable of a machine that trains is pulled, and plugged in again when the run has gone on elsewhere."""
    run = cluster.train("partition", *_SPARE)
    cut_off: list[str] = []

    def pull() -> None:
        cut_off.append(_last(cluster).name)
        cluster.hosts.partition(cut_off[0])

    result = disturbed(cluster, run, pull, looks_at_leftovers=False)
    cluster.hosts.heal(cut_off[0])
    left = cluster.leftovers(run.folder)
    assert not left, f"workers that were cut off outlive the run: {left}"
    bit_equal(cluster, run)  # still: those that were cut off wrote nothing
    cluster.mend()
    return result


def alone_and_cut_off(cluster: RealCluster) -> Result:
    """The cable of the only worker of a run is pulled: it ends itself, and the run goes on elsewhere, to the bit."""
    undisturbed_one = cluster.train("alone-undisturbed", workers=1)
    finish(cluster, undisturbed_one)
    run = cluster.train("alone", *_SPARE, workers=1)
    run.wait_for_step(AT)
    told, fault_s, name = len(run.said()), time.time(), _last(cluster).name
    cluster.hosts.partition(name)
    run.wait_for(lambda: "starting 1 worker" in run.said()[told:], "another launch", 200)
    detect_s = time.time() - fault_s
    finish(cluster, run, looks_at_leftovers=False)
    again_s, redone = run.pause_after(fault_s)
    cluster.hosts.heal(name)
    left = cluster.leftovers(run.folder)
    assert not left, f"the worker that was cut off outlives the run: {left}"
    assert run.weights() == undisturbed_one.weights(), "the worker that was cut off wrote nothing more"
    cluster.mend()
    return Result(detect_s, again_s, redone, "bit-equal")


def clocks_off(cluster: RealCluster) -> Result:
    """The clocks of the machines are hours apart: nobody is taken for late, and a fault is answered as ever."""
    clocks = [cluster.hosts[name].home / "clock" for name in cluster.workers]
    for clock, off_s in zip(clocks, (7200, -7200, 600), strict=True):
        clock.write_text(str(off_s))
    try:
        run = cluster.train("clocks-off", workers=2)
        run.wait_for_step(AT)
        _last(cluster).kill("RayTrainWorker")
        finish(cluster, run)
    finally:
        for clock in clocks:
            clock.unlink()
    assert run.said().count("starting again from step ") == 1, run.said()
    return Result(None, None, None, bit_equal(cluster, run))


def drained(cluster: RealCluster) -> Result:
    """A spot machine is taken away with a notice of 30 s: nothing is lost, and it counts as no failure."""
    run = cluster.train("drained", *_SPARE, "--max-failures", "0")
    ids = cluster.nodes()
    gone: list[str] = []

    def drain() -> None:
        gone.append(_last(cluster).name)
        cluster.drain(ids[gone[0]], deadline_s=30)

    result = disturbed(cluster, run, drain, noticed=r"drain|taken away|interrupt", most_redone=0)
    cluster.hosts.crash(gone[0])  # as the cloud does now
    cluster.mend()
    return result


def hanging_rank(cluster: RealCluster) -> Result:
    """A worker stands still (SIGSTOP): it is named, ended, and the run goes on."""
    run = cluster.train("hanging", "--hang-timeout", "10")
    stopped: list[str] = []

    def stop() -> None:
        host = _last(cluster)
        stopped.append(host.address)
        host.kill("RayTrainWorker", "STOP")

    result = disturbed(cluster, run, stop, noticed="no sign of life|no progress")
    assert f" on {stopped[0]}: no sign of life" in run.said(), (
        f"the worker on {stopped[0]} is not the one that is named"
    )
    return result


def elastic(cluster: RealCluster) -> Result:
    """A machine crashes, none is spare: the run goes on with one worker, and with two when the machine is back."""
    undisturbed(cluster, **SLOW)
    for spare in cluster.workers[2:]:
        cluster.hosts.crash(spare)
    cluster.wait_for_nodes([HEAD, *cluster.workers[:2]])
    run = cluster.train("elastic", "--grow-every", "5", workers="1:2", **SLOW | {"train__steps": 100_000})
    run.wait_for_step(60)
    name = _last(cluster).name
    told, fault_s = len(run.said()), time.time()
    cluster.hosts.crash(name)
    run.wait_for(lambda: LOST.split("|")[0] in run.said()[told:], "word of the lost worker")
    detect_s = time.time() - fault_s
    run.wait_for(lambda: _worlds(run)[-1:] == [1], "a checkpoint of one worker", 180)
    back_s = time.time()
    cluster.hosts.boot(name)
    run.wait_for(lambda: _worlds(run)[-1:] == [2], "a checkpoint of two workers again", 300)
    cluster.command("stop", run.folder.name)
    finish(cluster, run)
    again_s, redone = run.pause_after(fault_s, back_s)
    assert redone <= EVERY, f"{redone} steps were made twice, with a checkpoint every {EVERY}"
    cluster.mend()
    return Result(detect_s, again_s, redone, losses_agree(cluster, run, **SLOW))


def worlds_2_1_3(cluster: RealCluster) -> Result:
    """Stopped and gone on with by another number of workers, twice."""
    for workers, until in ((2, 110), (1, 210), (3, 300)):
        run = cluster.train("worlds", workers=workers, **SLOW | {"train__steps": 300})
        if until < 300:
            run.wait_for_step(until)
            cluster.command("stop", "worlds")
        finish(cluster, run)
    assert set(_worlds(run)) == {1, 2, 3}, _worlds(run)
    return Result(None, None, 0, losses_agree(cluster, run, **SLOW))


def head_crashed(cluster: RealCluster) -> Result:
    """The head loses its power and with it all that Ray knows; on the new cluster the run is resumed by its name."""
    undisturbed(cluster, **SLOW)
    run = cluster.train("head-crashed", "--hang-timeout", "10", **SLOW)  # so long may workers go on without the head
    run.wait_for_step(60)
    fault_s = time.time()
    cluster.hosts.crash(HEAD)
    run.wait_for(run.over, "the laptop's word that the cluster is gone", 120)
    detect_s = time.time() - fault_s
    cluster.hosts.boot(HEAD)
    cluster.up()
    again = cluster.start("resume", "head-crashed")
    finish(cluster, again)
    again.steps = run.steps + [made for made in again.steps if made not in run.steps]
    again_s, redone = again.pause_after(fault_s)
    assert redone <= EVERY, f"{redone} steps were made twice, with a checkpoint every {EVERY}"
    return Result(detect_s, again_s, redone, bit_equal(cluster, again, **SLOW))


def sweep_driver_killed(cluster: RealCluster) -> Result:
    """Kill -9 of a sweep's driver; the same sweep goes on, and trains no finished trial again."""
    words = ["--samples", "0", "--grid", "loss.alpha=0,0.05", "--grid", "loss.beta=0,0.05", "--scheduler", "none"]
    sweep = cluster.sweep("swept", *words)
    done = lambda: sorted(p.parent for p in sweep.folder.glob("trials/*/result.json"))  # noqa: E731
    sweep.wait_for(lambda: len(done()) >= 1, "a finished trial", 240)
    fault_s = time.time()
    cluster.hosts[HEAD].kill("jobs.cli.job_entrypoint")
    before = {trial: (trial / "metrics.jsonl").read_bytes() for trial in done()}
    assert sweep.wait(60) != 0, "the laptop is told that the sweep failed"
    detect_s = time.time() - fault_s
    left = cluster.leftovers(sweep.folder)
    assert not left, f"the dead driver left {left}"
    again = cluster.start("resume", "swept")
    finish(cluster, again)
    assert all((trial / "metrics.jsonl").read_bytes() == text for trial, text in before.items()), "trained again"
    results = json.loads((sweep.folder / "results.json").read_text())
    assert [result["state"] for result in results] == ["finished"] * 4, results
    return Result(detect_s, None, 0, f"{len(before)} of 4 trials kept")


def _last(cluster: RealCluster) -> Host:
    """Return the machine of the last of those that train."""
    return cluster.hosts[cluster.training_on()[-1]]


def _worlds(run: Run) -> list[int]:
    """Return the world size of each checkpoint."""
    return [
        json.loads((checkpoint.folder_of(run.folder, step) / "manifest.json").read_text())["world_size"]
        for step in checkpoint.steps(run.folder)
    ]
