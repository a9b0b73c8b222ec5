"""What runs in each worker process of a run: join the others, hold the run folder, train."""

import contextlib
import os
from typing import Any

import ray.train

from cluster.nodes import WorkerResources
from cluster.run.watchdog import Watchdog
from zfdist import startup
from zfdist.checkpoint import room
from zfdist.config import Config
from zfdist.run_options import RunOptions
from zfdist.run_protocol import Outcome
from zfdist.worker import LEASE_S, claim, logged, opened


def work(job: dict[str, Any]) -> Outcome:
    """What each worker does; `job` holds its `run` and what belongs to this launch of it."""
    from zfdist.train import train  # here, since the command imports this module too, and needs no torch
    from zfdist.world import connect

    startup.begin([*job["startup"], *startup.so_far()] if job["startup"] else [])
    if job["directory"].is_dir():
        os.chdir(job["directory"])  # relative paths mean what they mean to the command
    run: RunOptions = job["run"]
    rank = ray.train.get_context().get_world_rank()
    with room.explained(run.folder), opened(run, job["launch"], rank) as copy:
        folder = run.folder if copy is None else copy.folder
        timeout_s = run.machines.hang_timeout
        with logged(folder, rank), Watchdog(job["coordinator"], rank, folder, timeout_s) as watchdog:
            world = connect()
            # An earlier rank 0 that was cut off holds it until its lease has run out.
            with claim(folder, wait_s=2 * LEASE_S) if rank == 0 else contextlib.nullcontext():
                return train(run.config, folder, world, watchdog, run.start_from, copy=copy, profile=run.profile)


def worker_env(resources: WorkerResources, config: Config) -> dict[str, str]:
    """Return the environment of a process that trains; an OMP_NUM_THREADS of this one lowers that of its CPUs."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    most = int(given) if given.isdecimal() and int(given) else resources.cpus
    threads = config.engine.threads_per_worker or min(resources.cpus, most)
    hidden = {} if resources.gpus else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    passed_on = {name: os.environ[name] for name in ("TORCH_EXTENSIONS_DIR",) if name in os.environ}
    return {"OMP_NUM_THREADS": str(threads)} | hidden | passed_on
