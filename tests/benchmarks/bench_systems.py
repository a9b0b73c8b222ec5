"""A training step of every system at an equal number of parameters: time and memory.

The rival is the plain recurrent network, which has no latents. Every network is sized to the parameters that
zforcing with a Gaussian density has at the recipe's sizes, as `zfdist paper` sizes the rows of Table 1. All share
data and noise and run in turn in one process; a step is forward, backward and Adam.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from measure import Options, Table, Timing, interleaved
from peak import Peak

from zfdist.config import Config, LossConfig, ModelConfig
from zfdist.model.kernels.matmul_backend import float32
from zfdist.model.objective import objective
from zfdist.model.systems import build, parameter_counts, sized
from zfdist.recipes import RECIPES
from zfdist.schedule import Weights

WEIGHTS = Weights(kl=0.5, alpha=0.005, beta=0.005, free_nats_per_frame=0.0)
RIVAL = "rnn"
CASES: dict[str, tuple[str, str]] = {
    "rnn": ("rnn", "learned"),
    "storn": ("storn", "learned"),
    "vrnn-i": ("vrnn", "standard"),
    "vrnn": ("vrnn", "learned"),
    "srnn": ("srnn", "learned"),
    "zforcing": ("zforcing", "learned"),
}
DENSITIES = ("gaussian", "mixture")
SIZES: dict[str, Callable[[], Config]] = {
    "demo": RECIPES["demo"],
    "timit": RECIPES["timit"],
    "hidden32": lambda: Config().with_values({"model.hidden": 32, "model.z_dim": 8, "model.mlp_dim": 16}),
}
DEFAULT = ("demo",)


class Case:
    """A network, its optimizer, a batch of full sequences and its noise."""

    def __init__(self, model: ModelConfig, config: Config) -> None:
        x_dim, steps, batch = config.data.frame_samples, config.data.segment_frames, config.data.global_batch
        self.config, self.batch = model, batch
        self.model = build(model, x_dim, seed=1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        frames_TBX = torch.randn(steps + 1, batch, x_dim, generator=generator)
        eps_TBZ = torch.randn(steps, batch, model.z_dim, generator=generator)
        self.given = (frames_TBX[:-1], frames_TBX[1:], torch.full((batch,), steps), eps_TBZ)
        self.mask_TB = torch.ones(steps, batch, dtype=torch.bool)

    def step(self) -> None:
        """Make one update."""
        self.optimizer.zero_grad()
        objective(self.model(*self.given), self.mask_TB, WEIGHTS, self.batch).total.backward()
        self.optimizer.step()

    def peak(self) -> int:
        """Return the most bytes that an update holds at a time, gradients included, weights and moments left out."""
        self.step()  # the first one makes Adam's moments
        self.optimizer.zero_grad()
        with Peak() as memory:
            self.step()
        return memory.peak


def tables(options: Options) -> Iterator[Table]:
    """Yield one table per size."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with float32(torch.device("cpu")):  # as training does
        for size in options.sizes or DEFAULT:
            yield _table(size, SIZES[size](), options.repeats)


def _table(size: str, config: Config, repeats: int) -> Table:
    with torch.device("meta"):  # shapes without numbers
        budget = parameter_counts(build(config.model, config.data.frame_samples, seed=0))["total"]
    cases = {
        name if density == "gaussian" else f"{name}, {density}": Case(
            _sized(config, system, prior, density, budget), config
        )
        for density in DENSITIES
        for name, (system, prior) in CASES.items()
    }
    peaks = {name: case.peak() for name, case in cases.items()}
    timings = interleaved({name: case.step for name, case in cases.items()}, repeats)
    frames = config.data.segment_frames * config.data.global_batch
    return Table(
        f"systems, {size}: {budget:,} parameters each, z {config.model.z_dim}, batches of {config.data.global_batch} x "
        f"{config.data.segment_frames} frames of {config.data.frame_samples} samples",
        ("a training step", "hidden", "parameters", "ms (quartiles)", "frames/s", "CPU ms", "x rnn", "peak MB"),
        [_row(name, case, timings, peaks[name], frames) for name, case in cases.items()],
        (
            f"mixture: of {config.model.mixture_components} Gaussians, which leaves the rest of the network less",
            "CPU ms: least processor time, which a busy machine lengthens less; x rnn: how often that of the rnn",
            "peak: the most bytes of tensors alive at a time, gradients too, without weights and Adam's moments",
        ),
    )


def _sized(config: Config, system: str, prior: str, density: str, budget: int) -> ModelConfig:
    changed = config.with_values({"model.system": system, "model.vrnn_prior": prior, "model.density": density})
    loss = LossConfig(alpha=WEIGHTS.alpha, beta=WEIGHTS.beta)
    return sized(dataclasses.replace(changed.model, parameter_budget=budget), loss, config.data.frame_samples)


def _row(name: str, case: Case, timings: dict[str, Timing], peak: int, frames: int) -> tuple[str, ...]:
    timing = timings[name]
    return (
        name,
        str(case.config.hidden),
        f"{parameter_counts(case.model)['total']:,}",
        timing.ms(),
        f"{frames / timing.median:,.0f}",
        f"{timing.least_cpu * 1e3:.4g}",
        f"{timing.least_cpu / timings[RIVAL].least_cpu:.2f}",
        f"{peak / 1e6:.1f}",
    )
