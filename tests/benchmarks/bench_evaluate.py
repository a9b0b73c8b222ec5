"""The importance-weighted bound: sequences a second, and the most memory at a time, by K and by chunk.

The rival is all K trajectories in one batch, as the published code has them. All give the same bound.
"""

from collections.abc import Callable, Iterator

import torch
from measure import Options, Table, Timing, interleaved
from peak import Peak
from torch import Tensor

from zfdist.config import Config
from zfdist.data.loader import Batch
from zfdist.evaluation.bounds import Importance, importance_weighted
from zfdist.model.systems import build
from zfdist.recipes import RECIPES

FRAMES = 40  # half a second of sound
ROWS = 8
CASES = {
    "K 25 at once": Importance(samples=25, chunk=25),
    "K 25 in chunks of 5": Importance(samples=25, chunk=5),
    "K 25 in chunks of 1": Importance(samples=25, chunk=1),
    "K 5 in one chunk": Importance(samples=5, chunk=5),
    "K 1": Importance(samples=1, chunk=1),
}
RIVAL = "K 25 at once"
SIZES: dict[str, Callable[[], Config]] = {"demo": RECIPES["demo"], "timit": RECIPES["timit"]}
DEFAULT = ("demo",)


class Case:
    """A network with initial weights, and a batch of noise."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = build(config.model, config.data.frame_samples, seed=1)
        generator = torch.Generator().manual_seed(0)
        frames_TBX = torch.randn(FRAMES + 1, ROWS, config.data.frame_samples, generator=generator)
        rows_B = torch.arange(ROWS)
        self.batch = Batch(
            frames_TBX[:-1], frames_TBX[1:], torch.full((ROWS,), FRAMES), rows_B, rows_B, ROWS, ROWS * FRAMES
        )

    def bound(self, importance: Importance) -> Tensor:
        z_dim = self.config.model.z_dim
        return importance_weighted(self.model, self.batch, z_dim=z_dim, seed=3, importance=importance)

    def peak(self, importance: Importance) -> int:
        with Peak() as memory:
            self.bound(importance)
        return memory.peak


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for size in options.sizes or DEFAULT:
        yield _table(size, Case(SIZES[size]()), options.repeats)


def _table(size: str, case: Case, repeats: int) -> Table:
    together = case.bound(CASES[RIVAL])
    for name, importance in CASES.items():
        if importance.samples == CASES[RIVAL].samples:
            error = float((case.bound(importance) - together).abs().max() / together.abs().max())
            if error > 1e-5:
                raise AssertionError(f"{name}: off by {error:.1e}")
    peaks = {name: case.peak(importance) for name, importance in CASES.items()}
    timings = interleaved({name: lambda i=i: case.bound(i) for name, i in CASES.items()}, repeats)
    m = case.config.model
    return Table(
        f"evaluate, {size}: {m.system}, hidden {m.hidden}, z {m.z_dim}, {case.config.data.frame_samples} samples a "
        f"frame, {FRAMES} frames x {ROWS} sequences",
        ("importance-weighted bound", "s (quartiles)", "sequences/s", "CPU s", "peak MB", "x K 1"),
        [_row(name, timing, peaks) for name, timing in timings.items()],
        (
            "sequences/s: whole sequences with all their trajectories",
            "CPU s: least processor time, which a busy machine lengthens less",
            "peak: the most bytes of tensors alive at a time, without weights and the batch itself",
        ),
    )


def _row(name: str, timing: Timing, peaks: dict[str, int]) -> tuple[str, ...]:
    return (
        name,
        f"{timing.median:.3g} ({timing.low:.3g} .. {timing.high:.3g})",
        f"{ROWS / timing.median:.3g}",
        f"{timing.least_cpu:.3g}",
        f"{peaks[name] / 1e6:.1f}",
        f"{peaks[name] / peaks['K 1']:.2f}",
    )
