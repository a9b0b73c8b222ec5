"""Drills in which what a run has written, or writes, is damaged, or its numbers are not finite."""

import json
import os
import re
import threading
import time
from typing import Any

import object_store
from drills import AT, EVERY, Result, bit_equal, disturbed, finish, undisturbed
from followed_run import Run
from hosts import Host
from real_cluster import FAULTY_STEP, HEAD, RealCluster
from waiting import last_lines

from zfdist.checkpoint import folder as checkpoint
from zfdist.object_store import ObjectFolder


def torn_ray_files(cluster: RealCluster) -> Result:
    """All that Ray keeps of the run is cut to nothing, and a worker killed: Ray's files hold nothing that is needed."""
    run = cluster.train("torn")

    def tear() -> None:
        for path in (run.folder / ".ray").rglob("*"):
            if path.is_file():
                os.truncate(path, 0)
        cluster.hosts[cluster.training_on()[-1]].kill("RayTrainWorker")

    return disturbed(cluster, run, tear)


def newest_checkpoint_truncated(cluster: RealCluster) -> Result:
    """The newest checkpoint loses the half of a file, and a worker is killed: the one before is taken."""
    run = cluster.train("truncated")

    def cut() -> None:
        newest = checkpoint.folder_of(run.folder, checkpoint.steps(run.folder)[-1])
        os.truncate(newest / checkpoint.WEIGHTS, (newest / checkpoint.WEIGHTS).stat().st_size // 2)
        cluster.hosts[cluster.training_on()[-1]].kill("RayTrainWorker")

    result = disturbed(cluster, run, cut, most_redone=2 * EVERY)
    assert "damaged checkpoint set aside" in run.said()
    return result


def disk_full(cluster: RealCluster) -> Result:
    """The shared disk is full while a checkpoint is written, until somebody makes room; the run is then resumed."""
    disk = cluster.hosts.shared / "small"
    cluster.mount_small(disk, mib=24)
    run = cluster.train("full", storage=disk)
    run.wait_for_step(AT)
    newest = checkpoint.steps(run.folder)[-1]
    head = cluster.hosts[HEAD]
    head.run("sh", "-c", f"cat /dev/zero >{disk}/rubbish; truncate -s -200K {disk}/rubbish", check=False)
    told, fault_s = len(run.said()), time.time()
    word = "no checkpoint of step|No space left on device"
    run.wait_for(lambda: bool(re.search(word, run.said()[told:])), "word of the full disk")
    detect_s = time.time() - fault_s
    head.run("rm", f"{disk}/rubbish")
    code = run.wait()
    assert "Traceback" not in run.said()[told:], f"no clear word of the full disk:\n{last_lines(run.said())}"
    if code != 0:  # it gave up before there was room
        steps = run.steps
        run = cluster.start("resume", "--storage", str(disk), "full", storage=disk)
        finish(cluster, run)
        run.steps = steps + [made for made in run.steps if made not in steps]
    again_s, redone = run.pause_after(fault_s)
    reached = max(step for step, made_s in run.steps if made_s < fault_s + again_s)
    assert redone <= reached - newest, f"{redone} steps were made twice, from {newest}, the newest that was whole"
    return Result(detect_s, again_s, redone, bit_equal(cluster, run))


def storage_failing(cluster: RealCluster) -> Result:
    """The run is kept in an S3 store, which refuses six requests in a row while a checkpoint is stored."""
    laptop = cluster.hosts.laptop
    with object_store.server() as port, _door(laptop, port) as door:
        place = f"s3://{object_store.BUCKET}/runs?scheme=http&endpoint_override="
        run = cluster.train("stored", storage=f"{place}{laptop.address}:{door.port}")
        run.wait_for(lambda: f"step {AT}/" in run.said() or run.over(), f"step {AT}", 300)
        door.fail(6, "503", lambda method, path: method in ("PUT", "POST"))
        finish(cluster, run)
        assert door.failed == 6, f"{door.failed} requests failed"
        stored = ObjectFolder(f"{object_store.uri(port, 'runs/stored')}")
        names = set(stored.sizes())
        folders = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
        half = [folder for folder in folders if f"checkpoints/{folder}/manifest.json" not in names]
        assert not half, f"half checkpoints in the store: {half}"
        last = max(folders)  # step-00000300.LAUNCH
        weights = stored.read(f"checkpoints/{last}/{checkpoint.WEIGHTS}")
        assert weights == undisturbed(cluster).weights(), f"other parameters in {last} than undisturbed"
    return Result(None, None, 0, "bit-equal")


def _door(laptop: Host, port: int) -> object_store.Door:
    """Return the store's door on the network of the machines."""
    with laptop.network():
        door = object_store.Door(port, laptop.address)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    return door


def nan_on_one_rank(cluster: RealCluster) -> Result:
    """One machine computes NaN at one step: all ranks skip that update together, and say where it came from."""
    run = cluster.train("nan")
    run.wait_for_step(10)
    name = cluster.training_on()[-1]
    (cluster.hosts[name].home / "faulty").touch()
    try:
        finish(cluster, run)
    finally:
        (cluster.hosts[name].home / "faulty").unlink()
    skipped = [r for r in _records(run) if "skipped/terms" in r]
    assert [r["step"] for r in skipped] == [FAULTY_STEP], f"skipped: {skipped}"
    assert len(skipped[0]["skipped/sequence_ids"]) == 1, skipped
    return Result(None, None, 0, f"skipped by all, sequence {skipped[0]['skipped/sequence_ids'][0]} named")


def _records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
