"""Which implementation of the loop over time a run takes: once for all its workers, and for its whole life.

By hand, by rule (`recurrence.choose`), or by measuring: then the first worker tries all that serve every worker, in a
process of its own (`zfdist.loop_probe`), and takes the fastest of those that are right. What came of it is kept in the
user's cache for this device, driver, versions, network, shapes and precision. A run that goes on takes what it took
before, as another would round otherwise.

Where workers have different devices, the first one's decides for all: what is right on it serves all, what is fastest
on it may not be on others.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from zfdist import atomic_io, loop_probe
from zfdist.claim import TakenError, held
from zfdist.container import cache_home
from zfdist.loop_probe import Place
from zfdist.model.kernels import matmul_backend
from zfdist.model.kernels.mixed_precision import OPERANDS
from zfdist.model.recurrent import loop_trial, recurrence
from zfdist.model.recurrent.latent_chain import LatentChain
from zfdist.model.recurrent.loop_trial import LoopCase, Trial
from zfdist.model.recurrent.recurrence import UNDECIDED, Recurrence
from zfdist.world import World

Probe = Callable[[LoopCase, Place, dict[str, str]], list[Trial]]
_ORDER = ("graph", "triton", "native", "bptt", "reference")  # should the time not be enough for all


class Asked(NamedTuple):
    """What a run asks for, and what it has taken before."""

    name: str
    """model.recurrence"""
    before: str | None
    """What that came to in its newest checkpoint, if the same was asked for there; None in a new run."""
    is_resumed: bool


class Choice(NamedTuple):
    """What a run takes."""

    name: str
    told: list[str]
    """How it came to that, in lines for people; none where it was by hand or by rule."""


def settle(
    module: nn.Module, asked: Asked, world: World, *, steps: int, batch: int, precision: str, onednn: bool
) -> Choice | None:
    """Decide for the loop of a network, and let it take that; None if it has none that is to be decided.

    All workers must do this together, with the steps and sequences of a usual micro-batch.
    """
    part = next((p for p in module.modules() if isinstance(p, Recurrence | LatentChain)), None)
    if part is None:
        return None
    case = loop_trial.case_of(part, steps=steps, batch=batch, precision=precision)
    choice = chosen(case, asked, world, onednn=onednn)
    part.fastest = choice.name
    return choice


def chosen(case: LoopCase, asked: Asked, world: World, *, onednn: bool, probe: Probe = loop_probe.probed) -> Choice:
    """Return what all workers take, see `settle`."""
    device, operand = world.device, OPERANDS[case.precision]
    if asked.name not in UNDECIDED:
        return Choice(recurrence.choose(asked.name, device, torch.float32, operand), [])
    loops = loop_trial.loops_of(case)
    here = [name for name in _ORDER if name in loops and recurrence.serves(name, device, torch.float32, operand)]
    everyone = world.gather((here, machine(device)))
    names = [name for name in here if all(name in there for there, _ in everyone)]
    rule = "native" if "native" in names else "bptt"
    if asked.before in names or (asked.is_resumed and asked.before is None):
        return Choice(asked.before or rule, [])  # by rule, where checkpoints did not say
    if device.type == "cpu" and asked.name == "auto":
        return Choice(rule, _lost(asked))
    place = loop_probe.place_of(device, onednn=onednn)
    measured = world.gather(_measured(case, place, names, probe) if world.rank == 0 else None)[0]
    others = {_title(there) for _, there in everyone[1:]} - {_title(everyone[0][1])}
    note = [f"other workers have another device ({', '.join(sorted(others))}): not tried there"] if others else []
    trials, told = measured
    right = [trial for trial in trials if trial.problem is None and trial.name in names]
    name = min(right, key=lambda trial: trial.seconds, default=Trial(rule)).name
    return Choice(name, [*_lost(asked), *told, *note])


def table(trials: Sequence[Trial]) -> list[str]:
    """Return what came of each implementation, a line each, the fastest first."""
    ranked = sorted(trials, key=lambda trial: (trial.problem is not None, trial.seconds or 0.0))
    return [
        f"  {t.name:<10}" + (t.problem or f"{1e3 * (t.seconds or 0.0):9.2f} ms, relative error {t.error:.0e}")
        for t in ranked
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """Return all that measured times depend on here, but for the case: device, driver and versions."""
    versions = {name: _version(name) for name in ("zfdist", "torch", "triton")} | {"sources": _sources()}
    if device.type == "cpu":
        return {"device": platform.processor() or platform.machine(), "cpu": _cpu(), "versions": versions}
    found = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "device": found.name,
        "processors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "driver": _text(Path("/proc/driver/nvidia/version")).partition("\n")[0],
        "versions": versions | {"cuda": torch.version.cuda, "cudnn": cudnn},
    }


def _measured(case: LoopCase, place: Place, names: list[str], probe: Probe) -> tuple[list[Trial], list[str]]:
    """Return the trials of a case, from the cache or made now, and their table with its title."""
    here = machine(torch.device(place.device))
    on_gpu = place.device != "cpu"  # any of its kind, and whatever CPUs it has beside it
    alike = place._replace(device="cuda", threads=0) if on_gpu else place
    key = {"case": case._asdict(), "place": alike._asdict(), "names": names, "machine": here}
    text = json.dumps(key, sort_keys=True)
    path = cache_home() / "zfdist/loops" / f"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"
    with _alone(path):
        trials, kept = _read(path, key), f"kept in {path}"
        if trials is None:
            print(f"loop over time: trying {', '.join(names)}, for {loop_probe.LIMIT_S:g} s at most ...", flush=True)
            loops = loop_trial.loops_of(case)
            trials = probe(case, place, {name: loops[name] for name in names})
            kept = _keep(path, key, trials)
    sizes = f"{case.steps} steps, {case.batch} sequences, {case.precision}"
    title = f"loop over time, forward and backward on {_title(here)} ({sizes}; {kept}):"
    return trials, [title, *table(trials)]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for another process that measures the same just now, which would disturb; but for no longer than that."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, TakenError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(path.with_suffix(".lock"), wait_s=2 * loop_probe.LIMIT_S))
        yield


def _read(path: Path, key: dict[str, Any]) -> list[Trial] | None:
    """Return kept trials; None if there are none, or the file is torn or of something else."""
    try:
        kept = json.loads(path.read_bytes())
        if kept["key"] != json.loads(json.dumps(key)):
            return None
        trials = [Trial(**trial) for trial in kept["trials"]]
        return trials if all(t.problem or t.seconds > 0 for t in trials) else None  # type: ignore[operator]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(path: Path, key: dict[str, Any], trials: Sequence[Trial]) -> str:
    """Keep trials for other runs; return where, or why not."""
    if any(trial.may_change for trial in trials if trial.name != "reference"):  # the slowest, tried last
        return "not kept, as not all could be tried"
    try:
        atomic_io.write_json(path, {"key": key, "trials": [trial._asdict() for trial in trials]})
    except OSError as error:
        return f"not kept: {error.strerror or error}"
    return f"kept in {path}"


def _lost(asked: Asked) -> list[str]:
    """Say that a run cannot go on as it was."""
    return [f"loop over time: was by {asked.before}, which does not serve here"] if asked.before else []


def _title(machine: dict[str, Any]) -> str:
    return str(machine["device"])


def _cpu() -> str:
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return hashlib.blake2b("\n".join(told[:2]).encode(), digest_size=8).hexdigest() + f"/{os.cpu_count()}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


@functools.cache
def _sources() -> str:
    """Return a hash of all code that loops are made of."""
    folders = [Path(str(module.__file__)).parent for module in (loop_trial, matmul_backend)]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
