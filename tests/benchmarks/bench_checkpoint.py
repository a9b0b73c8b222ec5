"""What a checkpoint costs: seconds to write and to resume from, its size, and its share of training time.

The rival is one plain `torch.save` of weights and Adam's state, unhashed and left to the page cache. Ours also writes
the weights as safetensors, hashes every file, waits for the disk, and publishes by rename; and reads back what it
hashed before it loads. The rows of a store are against moto's S3 server on this machine, itself a Python program.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import Options, Table, interleaved

from zfdist import train, world
from zfdist.build import build
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import run_sync
from zfdist.config import Config
from zfdist.data.store_writer import Recording, publish, write_shard
from zfdist.recipes import RECIPES

SIZES = {"timit": RECIPES["timit"], "demo": RECIPES["demo"], "blizzard": RECIPES["blizzard"]}
DEFAULT = ("timit", "demo")
_STEPS = 3
_REMOTE_REPEATS = 5


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    here = world.connect()
    for size in options.sizes or DEFAULT:
        with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
            config = SIZES[size]().with_values({"data.root": str(_store(Path(folder, "data"))), "train.steps": 10**6})
            yield _table(size, config, Path(folder), here, options.repeats)


def _table(size: str, config: Config, folder: Path, here: world.World, repeats: int) -> Table:
    run = build(config, folder / "run", here, None)
    step_s = _train(run)
    candidates: dict[str, Callable[[], object]] = {
        "torch.save of weights and Adam's state": lambda: _plain_save(run, folder / "plain.pt"),
        "checkpoint: write": lambda: train._save(run, None),
    }
    written = train._save(run, None)
    assert written is not None
    candidates["checkpoint: verify all hashes"] = lambda: checkpoint.verify(written)
    timings = interleaved(candidates, repeats)
    run.engine.close()
    started = time.perf_counter()
    again = build(config, folder / "run", here, None)
    resume_s = time.perf_counter() - started
    again.engine.close()
    plain = timings["torch.save of weights and Adam's state"]
    sizes = {name: _mib(written) for name in candidates} | {
        "torch.save of weights and Adam's state": (folder / "plain.pt").stat().st_size / 2**20
    }
    rows = [
        (name, timing.ms(), f"{timing.median / plain.median:.2f}", f"{sizes[name]:.1f}")
        for name, timing in timings.items()
    ]
    rows += _remote_rows(config, folder, here, plain.median)
    rows.append(("run: build, verify, load", f"{resume_s * 1e3:.4g}", f"{resume_s / plain.median:.2f}", ""))
    every = config.checkpoint.every_steps
    share = timings["checkpoint: write"].median / (every * step_s)
    return Table(
        f"checkpoint, {size}: {sum(p.numel() for p in _module(run).parameters()):,} parameters",
        ("act", "ms (quartiles)", "x torch.save", "MiB"),
        rows,
        (f"a step takes {step_s:.3g} s; a checkpoint every {every} steps costs {share:.3%} of training time",),
    )


def _remote_rows(config: Config, folder: Path, here: world.World, unit_s: float) -> list[tuple[str, str, str, str]]:
    """Return how long training stands still for a checkpoint in a store on this machine, and if it waited for it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import object_store

    with object_store.server() as port:
        uri = object_store.uri(port, "runs/bench")
        with run_sync.opened(uri, 0, owner="bench", cache=folder / "cache") as copy:
            run = build(config, copy.folder, here, None, copy)
            _train(run)
            stood: dict[str, list[float]] = {"uploaded beside training": [], "waiting for the upload": []}
            for _ in range(_REMOTE_REPEATS):
                for name, times in stood.items():
                    started = time.perf_counter()
                    train._save(run, None, is_last=name == "waiting for the upload")
                    times.append(time.perf_counter() - started)
                    run.checkpointer.finish()
                    run.step += 1
            run.engine.close()
    return [
        (f"checkpoint in a store, {name}", f"{1e3 * median(times):.4g}", f"{median(times) / unit_s:.2f}", "")
        for name, times in stood.items()
    ]


def _train(run: train.Run) -> float:
    """Make some steps, so that Adam has a state; return the seconds of one."""
    started = 0.0
    for done, batches in enumerate(run.loader.iterate(0, _STEPS + 1)):
        if done == 1:
            started = time.perf_counter()
        train._update(run, batches)
        run.step += 1
    return (time.perf_counter() - started) / _STEPS


def _plain_save(run: train.Run, path: Path) -> None:
    optimizer = run.engine._engine.optimizer.optimizer
    torch.save({"model": _module(run).state_dict(), "optimizer": optimizer.state_dict()}, path)


def _module(run: train.Run) -> torch.nn.Module:
    module: torch.nn.Module = run.engine._engine.module
    return module


def _mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


def _store(root: Path) -> Path:
    """Write two minutes of noise: enough for some global batches of every size."""
    rng = np.random.default_rng(0)
    counts = {"train": 320, "valid": 2, "test": 2}
    shards = {}
    for split, count in counts.items():
        noise = [Recording(f"{split}/{i}", np.int16(2000 * rng.normal(size=8200))) for i in range(count)]
        shards[split] = [write_shard(root, f"{split}-00000", "bench", noise, {})]
    publish(root, shards, sample_rate=16_000, source={"converter": "bench"}, licence="none")
    return root
