"""What many tests start from: a small store, a small config, and real process groups on this machine."""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zfdist.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    KLConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from zfdist.data.store_writer import Recording, publish, write_shard

FRAME = 20


def make_store(root: Path, *, train: int = 40, held_out: int = 6, seed: int = 0) -> Path:
    """Write a store of resonant noise: 2 to 31 frames of 20 samples a recording, so that batches are ragged."""
    rng = np.random.default_rng(seed)

    def recordings(split: str, count: int) -> list[Recording]:
        made = []
        for i in range(count):
            noise = rng.normal(size=int(rng.integers(2 * FRAME, 32 * FRAME)))
            tone = np.sin(np.arange(len(noise)) * rng.uniform(0.05, 0.6))
            made.append(Recording(f"{split}/{i:04d}", np.int16(4000 * tone + 400 * noise)))
        return made

    sizes = {"train": train, "valid": held_out, "test": held_out}
    shards = {
        split: [write_shard(root, f"{split}-00000", "test", recordings(split, n), {})] for split, n in sizes.items()
    }
    publish(root, shards, sample_rate=16_000, source={"converter": "test"}, licence="none")
    return root


def tiny_config(store: Path, **values: Any) -> Config:
    """A config that trains in milliseconds a step; `values` are dotted names with `__` for the dot."""
    config = Config(
        model=ModelConfig(hidden=16, z_dim=4, mlp_dim=16),
        loss=LossConfig(alpha=0.01, beta=0.1, kl=KLConfig(start=0.2, increment=0.05)),
        data=DataConfig(
            root=str(store), frame_samples=FRAME, segment_frames=10, global_batch=7, eval_batch=4, window_batches=4
        ),
        optim=OptimConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=10),
        train=TrainConfig(steps=8, log_every=3, validate_every=4),
    )
    return config.with_values({name.replace("__", "."): value for name, value in values.items()})


class Recorder:
    """A reporter that remembers, and asks to stop after a given number of questions."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[tuple[dict[str, float], Path | None]] = []
        self.steps: list[int] = []
        self._left = stop_after

    def report(self, metrics: dict[str, float], checkpoint_folder: Path | None) -> None:
        self.reports.append((metrics, checkpoint_folder))

    def progress(self, step: int) -> None:
        self.steps.append(step)

    def should_stop(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left <= 0


def run_ranks(world_size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `work(*args)` in `world_size` new processes with a gloo group; return what each gave, by rank.

    An exception in a rank is raised here, with its traceback.
    """
    # Forked from a process that has imported what all need, and has started no thread: imports take 5 s a rank.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    multiprocessing.set_forkserver_preload(["zfdist.train", "deepspeed", "harness"])
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        arguments = (world_size, folder, dict(os.environ), work, args)
        try:
            mp.start_processes(_rank, arguments, nprocs=world_size, start_method="forkserver")
        finally:
            for path in sorted(Path(folder).glob("*.out")):
                print(path.read_text(), end="")
        return [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, folder: str, environ: dict[str, str], work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environ | {"OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    with Path(folder, f"{rank}.out").open("w", buffering=1) as out, contextlib.redirect_stdout(out):
        result = work(*args)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def copied(run: Path, to: Path) -> Path:
    """Copy a folder to one that a test may change; returns `to`."""
    shutil.copytree(run, to, symlinks=True)
    return to


def tree(root: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Mode, time of the last change and content of all that is below a folder: equal if nothing was touched."""
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.stat()
        is_file = path.is_file()
        found[str(path.relative_to(root))] = (
            stat.st_mode,
            stat.st_mtime_ns if is_file else 0,  # of a folder it tells of files that came and went
            path.read_bytes() if is_file else None,
        )
    return found


def as_stranger(*words: str, folder: Path, job: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user whom the machine does not know and who has no HOME, as containers do."""
    unshare = shutil.which("unshare")
    known = [unshare or "", "--user", "--map-user=54321", "--map-group=54321"]
    if unshare is None or subprocess.run([*known, "true"], capture_output=True).returncode:
        pytest.skip("this machine lends no other user ids")
    environment = ["env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={Path(__file__).parents[1]}"]
    return subprocess.run(
        [*known, *environment, sys.executable, "-m", f"jobs.{job}", *words],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
