"""How fast batches are made on one core: half-second sequences of a store too large for the processor's caches.

The same sequences in the same order as int16 rows and as whole batches (float32, normalised, time-major), against a
Python loop over recordings in memory. Also what it takes to find a batch of an epoch from nothing.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import Options, Table, interleaved
from numpy.typing import NDArray

from zfdist.config import DataConfig
from zfdist.data.loader import TrainLoader
from zfdist.data.order import Frames, Order, segments
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard

SIZES = {"1 shard": 1, "4 shards": 4}
_BATCH = 128
_STEPS = 100
_SECONDS = 8000


def tables(options: Options) -> Iterator[Table]:
    """Yield a table per number of shards, and one of the order."""
    torch.set_num_threads(options.threads)
    for size in options.sizes or SIZES:
        with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
            yield _throughput(size, _store(Path(folder), SIZES[size]), options.repeats)
    yield _order(options.repeats)


def _throughput(size: str, store: Store, repeats: int) -> Table:
    config = DataConfig(global_batch=_BATCH)
    loader = TrainLoader(store, config, seed=0, rank=0, world_size=1, accumulation_steps=1, device=torch.device("cpu"))
    view = segments(store.lengths("train"), config.frame_samples, config.segment_frames).all()
    width = (config.segment_frames + 1) * config.frame_samples
    lengths = store.lengths("train")
    # The rival slices recordings that lie in memory: no file, no Arrow, nothing but the copying.
    recordings = [store.gather("train", np.array([i]), np.array([0]), int(n))[0] for i, n in enumerate(lengths)]
    plan = [loader.global_ids(step) for step in range(_STEPS)]

    def copied(step: int) -> NDArray[np.int16]:
        rows = np.zeros((_BATCH, width), np.int16)
        for row, i in enumerate(plan[step]):
            cut = recordings[view.recordings[i]][view.starts[i] : view.starts[i] + width]
            rows[row, : len(cut)] = cut
        return rows

    def gathered(step: int) -> NDArray[np.int16]:
        return store.gather("train", view.recordings[plan[step]], view.starts[plan[step]], width)

    def normalised(step: int) -> torch.Tensor:
        frames = torch.from_numpy(copied(step)).view(_BATCH, -1, config.frame_samples).float()
        return ((frames - store.mean) / store.std).transpose(0, 1).contiguous()

    ways: dict[str, Callable[[int], object]] = {
        "row by row in Python": copied,
        "one gather a batch": gathered,
        "row by row, normalised, time-major": normalised,
        "whole Batch": loader.batches,
    }
    timings = interleaved({name: _all_steps(way) for name, way in ways.items()}, repeats)
    sequences = _STEPS * _BATCH
    rival = next(iter(timings.values()))
    rows = [
        (
            name,
            f"{sequences / timing.median:,.0f}",
            f"{sequences / timing.least_cpu:,.0f}",
            f"{rival.median / timing.median:.2f}",
            f"{timing.median / _STEPS * 1e3:.3g}",
        )
        for name, timing in timings.items()
    ]
    return Table(
        f"loader, {size}: batches of {_BATCH} half-second sequences from {_SECONDS * 32_000 / 1e6:.0f} MB",
        ("way", "sequences/s", "sequences/s of CPU time, best", "x row by row", "ms a batch"),
        rows,
    )


def _all_steps(way: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        for step in range(_STEPS):
            way(step)

    return run


def _order(repeats: int) -> Table:
    """The first batch of a restarted process, from its lengths on: the view, the order and the ids of one step."""
    counts = (56_400, 1_000_000, 10_000_000, 100_000_000)
    per_recording = 400  # segments of half a second: recordings of 200 seconds, as those of books are

    def whole(count: int) -> object:
        return np.random.default_rng(0).permutation(count)[count * 3 // 4 :][:_BATCH]

    def keyed(lengths: NDArray[np.int64], segment_frames: int) -> object:
        view = segments(lengths, 200, segment_frames)
        order = Order(Frames(view), global_batch=_BATCH, window_batches=64, seed=0)
        return view.at(order.ids(order.batches_per_epoch * 3 // 4))

    rows = []
    for count in counts:
        lengths = np.full(count // per_recording, 200 * (40 * per_recording + 1))
        ways = {"keyed": lambda lengths=lengths: keyed(lengths, 40)}
        if count <= 10_000_000:
            ways |= {"whole": lambda n=count: whole(n)}
        timings = interleaved(ways, repeats)
        held_mib = 3 * lengths.nbytes / (1 << 20)
        rows += [
            (f"{count:,} segments of {len(lengths):,} recordings, zfdist", timings["keyed"].ms(), f"{held_mib:.1f}")
        ]
        if "whole" in timings:
            rows += [
                (f"{count:,}, numpy's whole permutation, unsorted", timings["whole"].ms(), f"{count / (1 << 17):.1f}")
            ]
    return Table(
        "order: the batch at 75 % of an epoch, from nothing", ("sequences", "ms (quartiles)", "MiB of index held"), rows
    )


def _store(root: Path, shards: int) -> Store:
    """Write noise: _SECONDS seconds at 16 kHz in recordings of 4 to 12 seconds."""
    rng = np.random.default_rng(0)

    def recordings(seconds: int) -> Iterator[Recording]:
        left = seconds * 16_000
        while left > 0:
            length = int(rng.integers(64_000, 192_000))
            yield Recording(f"{left}", rng.integers(-3000, 3000, length, dtype=np.int16))
            left -= length

    parts = {"train": shards, "valid": 1, "test": 1}
    done = {
        split: [
            write_shard(root, f"{split}-{i:05d}", "bench", recordings(_SECONDS // count if split == "train" else 1), {})
            for i in range(count)
        ]
        for split, count in parts.items()
    }
    publish(root, done, sample_rate=16_000, source={"converter": "bench"}, licence="none")
    return Store.open(root, "size")
