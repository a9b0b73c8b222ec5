"""A training step of the network, forward and backward, by every implementation of its loop.

The rival is the naive loop as published (published_loop.py); the lower bound is nn.LSTM of the same width over the
same steps, which has no latents. All share weights, data and noise; losses and gradients are compared in the same run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from measure import Options, Table, Timing, interleaved
from published_loop import published_terms
from torch import Tensor

from jobs.recipes import RECIPES
from zfdist import seeding
from zfdist.config import Config
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.model.terms import Terms
from zfdist.schedule import Weights

NAIVE, LSTM, ONEDNN = "naive loop, as published", "nn.LSTM without latents", "bptt, products by oneDNN"
WEIGHTS = Weights(kl=0.5, alpha=0.005, beta=0.005, free_nats_per_frame=0.0)


def _small(hidden: int) -> Config:
    sizes = {"model.hidden": hidden, "model.z_dim": hidden // 4, "model.mlp_dim": hidden // 2}
    return Config().with_values({**sizes, "data.global_batch": 32})


SIZES: dict[str, Callable[[], Config]] = {
    "timit": RECIPES["timit"],
    "demo": RECIPES["demo"],
    "hidden64": lambda: _small(64),
    "hidden32": lambda: _small(32),
    "blizzard": RECIPES["blizzard"],
}
DEFAULT = ("timit", "demo", "hidden64", "hidden32")


class Case:
    """One size: a network, a batch of full segments, and its noise."""

    def __init__(self, config: Config) -> None:
        frames, batch, x_dim = config.data.segment_frames, config.data.global_batch, config.data.frame_samples
        self.config = config
        self.model = build(config.model, x_dim, seed=1)
        generator = torch.Generator().manual_seed(0)
        speech_TBX = torch.randn(frames + 1, batch, x_dim, generator=generator)
        self.x_TBX, self.y_TBX = speech_TBX[:-1], speech_TBX[1:]
        self.lengths_B = torch.full((batch,), frames)
        self.mask_TB = torch.ones(frames, batch, dtype=torch.bool)
        self.eps_TBZ = seeding.normals(seeding.key(0, "bench"), torch.arange(batch), frames, config.model.z_dim)
        self.lstm = torch.nn.LSTM(x_dim + config.model.z_dim, config.model.hidden)

    def terms(self, implementation: str) -> Terms:
        if implementation == NAIVE:
            return published_terms(self.model, self.x_TBX, self.y_TBX, self.eps_TBZ)
        self.model.recurrence.implementation = implementation.split(",")[0]
        return self.model(self.x_TBX, self.y_TBX, self.lengths_B, self.eps_TBZ)

    def step(self, implementation: str) -> tuple[Tensor, Tensor]:
        """Forward, loss and backward: the loss and all gradients as one vector."""
        with onednn_products(implementation == ONEDNN):
            return self._step(implementation)

    def _step(self, implementation: str) -> tuple[Tensor, Tensor]:
        loss = objective(self.terms(implementation), self.mask_TB, WEIGHTS, self.x_TBX.shape[1]).total
        self.model.zero_grad()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in self.model.parameters()])

    def lstm_step(self) -> None:
        self.lstm.zero_grad()
        self.lstm(torch.cat([self.x_TBX, self.eps_TBZ], dim=-1))[0].square().sum().backward()


@contextmanager
def onednn_products(on: bool) -> Iterator[None]:
    """Send float32 products to oneDNN: still float32 on most processors, but 16-bit inside on one with AMX."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    if on:
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for size in options.sizes or DEFAULT:
        yield _table(size, Case(SIZES[size]()), options.repeats)


def _table(size: str, case: Case, repeats: int) -> Table:
    candidates = {name: lambda name=name: case.step(name) for name in (NAIVE, "reference", "bptt", ONEDNN)}
    errors = _disagreement(case)
    timings = interleaved({**candidates, LSTM: case.lstm_step}, repeats)
    forward = interleaved({name: lambda name=name: case.terms(name) for name in (NAIVE, "reference", "bptt")}, repeats)
    noise = interleaved({"noise": lambda: _noise(case)}, repeats)["noise"]
    m, steps, batch = case.config.model, *case.mask_TB.shape
    return Table(
        f"core, {size}: hidden {m.hidden}, z {m.z_dim}, mlp {m.mlp_dim}, {case.x_TBX.shape[2]} samples a frame, "
        f"{steps} frames x {batch} sequences",
        ("training step", "forward ms", "with backward, ms (quartiles)", "x naive", "CPU ms", "x", "gradient off by"),
        [_row(n, t, timings[NAIVE], forward.get(n), errors.get(n)) for n, t in timings.items()],
        (
            f"noise of a step (Philox): {noise.ms()} ms, {noise.least_cpu / timings['bptt'].least_cpu:.2%} of bptt's",
            "CPU ms: least processor time of a step, which a busy machine lengthens less; x: the naive loop's over it",
            "gradient off by: relative to the naive loop's, over all parameters; more than 1e-4 is refused",
        ),
    )


def _row(name: str, timing: Timing, naive: Timing, forward: Timing | None, error: float | None) -> tuple[str, ...]:
    return (
        name,
        "" if forward is None else f"{forward.median * 1e3:.4g}",
        timing.ms(),
        f"{naive.median / timing.median:.2f}",
        f"{timing.least_cpu * 1e3:.4g}",
        f"{naive.least_cpu / timing.least_cpu:.2f}",
        "" if error is None else f"{error:.1e}",
    )


def _disagreement(case: Case) -> dict[str, float]:
    """Compare losses and gradients with the naive loop's, in the configuration that is timed."""
    loss, gradient = case.step(NAIVE)
    errors = {}
    for name in ("reference", "bptt", ONEDNN):
        other_loss, other = case.step(name)
        errors[name] = float((other - gradient).norm() / gradient.norm())
        if name == ONEDNN:  # shown, not judged: what it rounds depends on the processor
            continue
        if errors[name] > 1e-4 or abs(float(other_loss - loss)) > 1e-4 * abs(float(loss)):
            raise AssertionError(f"{name}: loss {other_loss} against {loss}, gradient off by {errors[name]:.1e}")
    return errors


def _noise(case: Case) -> Tensor:
    steps, batch = case.mask_TB.shape
    return seeding.normals(seeding.key(0, "bench"), torch.arange(batch), steps, case.config.model.z_dim)
