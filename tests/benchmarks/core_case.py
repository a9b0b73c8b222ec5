"""What bench_core times: one network with a batch, its loss by every candidate, and the error of the gradients.

A candidate is an implementation of the loop over time under a precision. The naive loop as published
(published_loop.py) is the rival, in float64 the truth.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from published_loop import published_terms
from torch import Tensor

from zfdist import seeding
from zfdist.config import Config
from zfdist.model.kernels.matmul_backend import float32, through_onednn
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.model.terms import Terms
from zfdist.recipes import RECIPES
from zfdist.schedule import Weights

WEIGHTS = Weights(kl=0.5, alpha=0.005, beta=0.005, free_nats_per_frame=0.0)
WORDS = 16_000
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_ERROR = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1, "fp16": 2e-2}
"""Largest relative error of a gradient; all that is timed must be as good."""
LOSS_SCALE = 2.0**4
"""Under fp16: here neither so large that gradients overflow nor so small that they vanish; a run's adapts itself."""
NAIVE, AUTOGRAD = "naive loop, as published", "hoisted loop, autograd"


class Candidate(NamedTuple):
    """One row: an implementation of the loop, and all else that it differs in."""

    name: str
    implementation: str  # "" for the naive loop
    onednn: bool = False
    fused_adam: bool = True
    kept: bool = False  # freed memory, by the C library
    precision: str = "fp32"
    recorded: bool = False  # forward and backward pass of the whole network as one CUDA graph


def candidates(device: torch.device) -> tuple[Candidate, ...]:
    """Return the rows for this device, the rival first."""
    plain = (
        Candidate(NAIVE, "", fused_adam=False),
        Candidate(AUTOGRAD, "reference", fused_adam=False),
        Candidate("bptt", "bptt"),
    )
    if device.type == "cpu":
        return (
            *plain,
            Candidate("bptt, products by oneDNN", "bptt", onednn=True),
            Candidate("native", "native"),
            Candidate("native, products by oneDNN", "native", onednn=True),
            Candidate("the same, freed memory kept", "native", onednn=True, kept=True),
            *(Candidate(f"bptt, {narrow}", "bptt", onednn=True, precision=narrow) for narrow in AUTOCAST),
        )
    narrow = [
        Candidate(f"{name}, {precision}", implementation, precision=precision, recorded=implementation == "reference")
        for precision in ("fp32", "tf32", "bf16", "fp16")
        for name, implementation in (
            ("hoisted loop in a CUDA graph", "reference"), ("graph", "graph"), ("triton", "triton"),
        )
    ]  # fmt: skip
    return (*plain, *narrow)


def _small(hidden: int) -> Config:
    sizes = {"model.hidden": hidden, "model.z_dim": hidden // 4, "model.mlp_dim": hidden // 2}
    return Config().with_values({**sizes, "data.global_batch": 32})


def _batch(name: str, sequences: int) -> Callable[[], Config]:
    return lambda: RECIPES[name]().with_values({"data.global_batch": sequences})


SIZES: dict[str, Callable[[], Config]] = {
    "timit": RECIPES["timit"],
    "imdb": RECIPES["imdb"],
    "demo": RECIPES["demo"],
    "hidden64": lambda: _small(64),
    "hidden32": lambda: _small(32),
    "hidden16": lambda: _small(16),
    "blizzard": RECIPES["blizzard"],
    "mnist": RECIPES["mnist"],
    "timit-128": _batch("timit", 128),
    "mnist-128": _batch("mnist", 128),
    "imdb-128": _batch("imdb", 128),
    "blizzard-32": _batch("blizzard", 32),
}
ON_A_CPU = ("timit", "imdb", "hidden64", "hidden32", "hidden16")
ON_A_GPU = ("timit", "mnist", "blizzard", "imdb", "timit-128", "mnist-128", "imdb-128", "blizzard-32")


class Case:
    """One size: a network, a batch of full sequences, and its noise."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        density = config.model.density
        lengths = {"categorical": 16, "bernoulli": 784}  # of sentences and of images; else a segment
        self.steps, self.batch = lengths.get(density, config.data.segment_frames), config.data.global_batch
        self.x_dim = WORDS if density == "categorical" else config.data.frame_samples
        self.model = build(config.model, self.x_dim, seed=1).to(device)
        generator = torch.Generator().manual_seed(0)
        if density == "categorical":
            seen = torch.randint(WORDS, (self.steps + 1, self.batch), generator=generator)
        else:
            seen = torch.randn(self.steps + 1, self.batch, self.x_dim, generator=generator)
        seen = ((seen > 0).float() if density == "bernoulli" else seen).to(device)
        self.x_TBX, self.y_TBX = seen[:-1], seen[1:]
        self.lengths_B = torch.full((self.batch,), self.steps, device=device)
        self.mask_TB = torch.ones(self.steps, self.batch, dtype=torch.bool, device=device)
        positions_B = torch.arange(self.batch, device=device)
        self.eps_TBZ = seeding.normals(seeding.key(0, "bench"), positions_B, self.steps, config.model.z_dim)

    def loss(self, candidate: Candidate) -> Tensor:
        """Return the loss, under fp16 scaled."""
        narrow = AUTOCAST.get(candidate.precision)
        with torch.autocast(self.device.type, narrow, enabled=narrow is not None):
            terms = self._terms(candidate.implementation)
        return objective(terms, self.mask_TB, WEIGHTS, self.batch).total * _scale(candidate)

    def _terms(self, implementation: str) -> Terms:
        if not implementation:
            return published_terms(self.model, self.x_TBX, self.y_TBX, self.eps_TBZ)
        self.model.recurrence.implementation = implementation
        return self.model(self.x_TBX, self.y_TBX, self.lengths_B, self.eps_TBZ)

    @contextlib.contextmanager
    def products(self, candidate: Candidate) -> Iterator[None]:
        """Let float32 products be made as the candidate says."""
        if self.device.type == "cuda":
            with float32(self.device, candidate.precision):
                yield
        else:
            with through_onednn() if candidate.onednn else contextlib.nullcontext():
                yield

    def error(self, candidate: Candidate, passes: Callable[[], None], exact: Tensor) -> float:
        """Return the relative error of the gradient that `passes`, forward and backward, leaves behind."""
        for _ in range(3):  # a recording is made the first or the second time, and must be as good when it is replayed
            self.model.zero_grad()
            passes()
        error = float((self._gradient() / _scale(candidate) - exact).norm() / exact.norm())
        if not error <= MOST_ERROR[candidate.precision]:
            raise AssertionError(f"{candidate.name}: gradient off by {error:.1e}")
        return error

    def exact_gradient(self) -> Tensor:
        """Return the naive loop's gradient in float64, with the weights, data and noise of float32."""
        saved = self.x_TBX, self.y_TBX, self.eps_TBZ
        self.model.double()
        self.x_TBX, self.y_TBX, self.eps_TBZ = (v.double() if v.is_floating_point() else v for v in saved)
        self.loss(Candidate(NAIVE, "")).backward()
        exact = self._gradient()
        self.model.float()
        self.x_TBX, self.y_TBX, self.eps_TBZ = saved
        return exact

    def _gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten().double() for p in self.model.parameters()])

    def gflop(self) -> float:
        """Return the operations of forward and backward pass: of products only, and none that is not needed."""
        m, heads = self.config.model, 0
        embedded = m.embed_dim or self.x_dim
        outputs = 2 * self.x_dim if m.density == "gaussian" else self.x_dim
        core = m.hidden * (4 * m.hidden + m.mlp_dim) + m.z_dim * 4 * m.hidden + m.mlp_dim * 2 * m.z_dim
        before = embedded * 4 * m.hidden * 2 + 4 * m.hidden**2 + m.hidden * m.mlp_dim
        heads += m.hidden * m.mlp_dim + m.mlp_dim * 2 * m.z_dim + m.z_dim * m.mlp_dim + m.mlp_dim * 2 * m.hidden
        heads += 2 * (m.output_layers * m.hidden * m.mlp_dim + (m.mlp_dim if m.output_layers else m.hidden) * outputs)
        return 6e-9 * self.steps * self.batch * (core + before + heads)


def _scale(candidate: Candidate) -> float:
    return LOSS_SCALE if candidate.precision == "fp16" else 1.0
