"""A training step, evaluation and generation on CUDA tensors that are not there: what a GPU would stumble on.

Run as a process of its own (`python fake_cuda.py LIBRARY PART`), as the library (fake_cuda_guard.cpp) must be loaded
before torch. Tensors know their device, type and shape and hold nothing, so that all of the code's own decisions are
made as on a GPU, on a build of torch without CUDA. Prints JSON: for each case what was found, and launches.
"""

# ruff: noqa: E402, SIM905

import collections
import ctypes
import itertools
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)

import numpy as np
import torch
import torch.cuda.amp.common
from checked_kernel import GPU, Checked
from recorder import Recorder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zfdist import seeding
from zfdist.config import ModelConfig
from zfdist.data import kinds
from zfdist.data.loader import Batch, _batches, _Rows
from zfdist.evaluation import bounds, generate
from zfdist.model.kernels import cuda_graphs, matmul_backend, triton_kernels
from zfdist.model.kernels.mixed_precision import OPERANDS
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.schedule import Weights

ROOT = str(Path(__file__).parents[2])
SYSTEMS = ("zforcing", "storn", "vrnn", "srnn", "rnn", "lru")
KINDS = dict.fromkeys(kinds.PCM16.densities, kinds.PCM16) | {
    "bernoulli": kinds.BITS,
    "categorical": kinds.TOKENS,
}
PAIRS = [
    (system, density)
    for system in SYSTEMS
    for density in KINDS
    if density != "autoregressive" or system in ("zforcing", "lru")  # it is the output net's, the same in all
]
SWITCHES: tuple[dict[str, Any], ...] = (
    {"aux_stop_gradient": "backward_net"},
    {"layer_norm_z": True},
    {"aux_sees_h": True, "latent_sees_x": True, "output_skip": True, "output_sees_z": True, "label_classes": 3},
)
WEIGHTS = Weights(kl=0.5, alpha=0.005, beta=0.005, free_nats_per_frame=0.1, label=1.0)
BATCH, SAMPLES, WORDS = 4, 8, 50
# What launches nothing: views, and memory without contents.
FREE = frozenset("""
view t slice select expand unbind detach alias as_strided transpose permute unsqueeze squeeze split split_with_sizes
chunk diagonal unfold lift_fresh _unsafe_view _reshape_alias empty empty_like new_empty empty_strided new_empty_strided
""".split())  # fmt: skip


class Case(NamedTuple):
    system: str
    density: str
    implementation: str = "auto"
    precision: str = "bf16"
    steps: int = 3
    switches: dict[str, Any] = {}  # noqa: RUF012 - read only


class Audit(TorchDispatchMode):
    """Notes what would make a GPU wait or fail, and counts launches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()
        self.launches = 0

    def note(self, what: str, operation: str) -> None:
        self.found[f"{what}: {operation} at {_caller()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func).removeprefix("aten.")
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        devices = {t.device.type for t in tensors}
        if name.startswith("_local_scalar_dense"):
            if "cuda" in devices:
                self.note("waits for a number", name)
            return 1.0 if tensors[0].is_floating_point() else tensors[0].dtype == torch.bool or 1
        if name.startswith("_pin_memory"):
            return args[0]
        if "cuda" in devices and (name.startswith(("nonzero", "masked_select", "_unique")) or _by_mask(name, args)):
            self.note("waits for a size", name)
        out = func(*args, **kwargs)
        results = {o.device.type for o in tree_leaves(out) if isinstance(o, torch.Tensor)}
        if name.startswith(("copy_", "_to_copy", "to.")):
            if len(devices | results) > 1:
                self._copied(name, devices, args, kwargs)
        elif len(devices) > 1:
            self.note("mixes devices", name)
        elif not devices and "cpu" in results:
            self.note("makes a tensor on the CPU", name)
        self.launches += "cuda" in results and name.split(".")[0] not in FREE
        return out

    def _copied(self, name: str, devices: set[str], args: Any, kwargs: Any) -> None:
        blocks = not kwargs.get("non_blocking", len(args) > 2 and args[2] is True)
        if blocks or devices == {"cuda"}:  # to the host it always waits
            self.note("copies and waits", name)


def _by_mask(name: str, args: Any) -> bool:
    return name.startswith("index") and any(
        isinstance(a, torch.Tensor) and a.dtype in (torch.bool, torch.uint8) for a in tree_leaves(args[1:2])
    )


def _caller() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/zfdist"):
            return f"{file.removeprefix(ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"


def gpu_module(case: Case) -> nn.Module:
    words = case.density == "categorical"
    config = ModelConfig(
        system=case.system, density=case.density, hidden=32, z_dim=8, mlp_dim=16, mixture_components=3,
        embed_dim=12 if words else 0, recurrence=case.implementation, **case.switches,
    )  # fmt: skip
    module = build(config, WORDS if words else 1 if case.density == "bernoulli" else SAMPLES, 0)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                setattr(part, name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=GPU)))
    return module


def gpu_batch(case: Case) -> Batch:
    """Return a batch as the loader makes it of rows in pinned memory."""
    samples = SAMPLES if KINDS[case.density] == kinds.PCM16 else 1

    class Store:
        kind, mean, std = KINDS[case.density], 1.0, 2.0

    rows = torch.from_numpy(np.ones((BATCH, (case.steps + 1) * samples), dtype=np.int16))
    numbers = np.array([[case.steps, case.steps - 1, case.steps, 0], range(BATCH), range(BATCH), [0, 1, -1, 2]])
    numbers = numbers if case.switches.get("label_classes") else numbers[:3]
    packed = _Rows(rows.pin_memory(), torch.from_numpy(numbers).pin_memory(), 3, 14)
    return _batches(packed, 1, Store(), samples, GPU)[0]  # type: ignore[arg-type]


def train(module: Any, forward: Any, case: Case, audit: Audit) -> dict[str, int]:
    """Make a step, or two where the loop is recorded, which it is at the second."""
    laps = {}
    for _ in range(2 if case.implementation in ("graph", "triton") else 1):
        batch, marks = gpu_batch(case), [audit.launches]
        eps = seeding.normals((1, 2), batch.positions_B, case.steps, 8)
        marks.append(audit.launches)
        terms = forward(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps)
        loss = objective(terms, batch.mask_TB, WEIGHTS, 3, batch.labels_B)
        marks.append(audit.launches)
        poison = torch.where(torch.isfinite(loss.total.detach()), 1.0, torch.nan)
        (loss.total * poison).backward()
        marks.append(audit.launches)
        names = ("noise", "forward", "backward")
        laps = {name: b - a for name, (a, b) in zip(names, itertools.pairwise(marks), strict=True)}
        for name, weight in module.named_parameters():
            if weight.grad is not None and (weight.grad.device, weight.grad.dtype) != (weight.device, weight.dtype):
                audit.note(f"gradient of another type ({weight.grad.dtype}, {weight.grad.device})", name)
            weight.grad = None
    return laps


def evaluate(module: Any, forward: Any, case: Case, audit: Audit) -> dict[str, int]:
    importance = bounds.Importance(samples=4, chunk=2)
    bounds.score(forward, [gpu_batch(case)], z_dim=8, seeds=[0], importance=importance)
    return {}


def generation(module: Any, forward: Any, case: Case, audit: Audit) -> dict[str, int]:
    """Draw; how often that waits is of no account."""
    first = torch.ones(4, dtype=torch.int64, device=GPU) if case.density == "categorical" else None
    generate.samples(module, sequences=4, steps=case.steps, seed=0, first_B=first)
    generate.rebuilt(module, gpu_batch(case), seed=1)
    batch = gpu_batch(case)
    whole = batch._replace(lengths_B=torch.full((BATCH,), case.steps, device=GPU))
    state = generate._inferred(module, whole, generate._posterior_noise(module, whole, None)).state
    noise = generate._noise(module, batch.positions_B, 3, 0)
    generate._generated(module, (), *noise, temperature=1.0, state=state, x_BX=whole.y_TBX[-1])
    audit.found = collections.Counter({k: n for k, n in audit.found.items() if not k.startswith(("waits", "copies"))})
    return {}


def faults(module: Any, forward: Any, case: Case, audit: Audit) -> dict[str, int]:
    """Make every kind of fault that is looked for once, to show that each is found."""
    there = torch.empty(3, device=GPU)
    for fault in (
        lambda: float(there.sum()),
        lambda: there[there > 0],
        lambda: torch.ones(3).to(GPU),
        lambda: there.to("cpu", non_blocking=True),
        lambda: there + torch.ones(3),
    ):
        try:
            fault()
        except Exception as error:  # as fake tensors answer some
            audit.note(type(error).__name__, str(error).splitlines()[0])
    return {}


def cases(part: str) -> Iterator[Case]:
    if part == "faults":
        yield Case("rnn", "gaussian")
        return
    yield from (Case(*pair) for pair in PAIRS)
    if part == "train":
        yield from (Case("zforcing", "gaussian", switches=switches) for switches in SWITCHES)
        for system, name in itertools.product(("zforcing", "srnn"), ("reference", "bptt", "graph", "triton")):
            yield from (Case(system, "gaussian", name, precision) for precision in ("fp32", "fp16"))
        for system, name in (
            ("zforcing", "bptt"),
            ("srnn", "bptt"),
            ("zforcing", "triton"),
        ):  # for the launches of a step
            yield from (Case(system, "gaussian", name, steps=steps) for steps in (4, 8))


WORK = {"train": train, "evaluate": evaluate, "generate": generation, "faults": faults}


def run(part: str, case: Case) -> dict[str, Any]:
    audit, work, operand = Audit(), WORK[part], OPERANDS[case.precision]
    cuda_graphs.graphs_of.cache_clear()
    Checked.launches = 0
    laps: dict[str, int] = {}
    with ExitStack() as stack:
        for context in (FakeTensorMode(allow_non_fake_inputs=True), audit, matmul_backend.float32(GPU, case.precision)):
            stack.enter_context(context)
        try:
            module = gpu_module(case)
            audit.found.clear()
            narrow = operand != torch.float32
            forward = torch.autocast("cuda", operand)(module.forward) if narrow else module.forward
            laps = work(module, forward, case, audit)
        except Exception as error:
            audit.note(f"{type(error).__name__} {error}".splitlines()[0], _last(error))
    return {"case": case._asdict(), "found": dict(audit.found), "launches": laps, "kernels": Checked.launches}


def _last(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(ROOT)]
    return f"{frames[-1].filename.removeprefix(ROOT + '/')}:{frames[-1].lineno}"


def main(part: str) -> None:
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # else autocast turns itself off
    torch.cuda.is_bf16_supported = lambda *a, **k: True
    cuda_graphs.graphs_of.__wrapped__.__globals__["cuda_capture"] = Recorder()
    torch.cuda.current_device = lambda: 0
    seeding.describe(GPU)  # tries its kernel, which cannot run here
    torch.cuda.get_per_process_memory_fraction = lambda *a: 1.0
    torch.cuda.get_device_properties = lambda *a: type("Properties", (), {"total_memory": 2**40})
    for name, kernel in vars(triton_kernels).copy().items():
        if hasattr(kernel, "arg_names") and not name.startswith("_"):
            setattr(triton_kernels, name, Checked(kernel))
    print(json.dumps([run(part, case) for case in cases(part)]))


if __name__ == "__main__":
    main(sys.argv[2])
