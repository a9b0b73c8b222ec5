"""A process of its own tries every implementation of a run's loop over time: what crashes or hangs does no harm there.

One process tries them one after the other. It ends with the first that is wrong, which may have written where it should
not, or left its GPU in a state that fails all others; so another one goes on with the rest. A time limit is an alarm of
the kernel's, which ends also what never comes back to Python.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zfdist.model.kernels import matmul_backend
from zfdist.model.recurrent import loop_trial
from zfdist.model.recurrent.loop_trial import LoopCase, Trial
from zfdist.model.recurrent.recurrence import found

LIMIT_S = 30.0
"""All that a probe may take."""
EACH_S = 12.0
"""What an implementation may take; a first compilation is of it."""
_TURNS_S = 3.0
_DEATH_S = 5.0
_WENT_WRONG = 3  # exit code after the first that is wrong


class Place(NamedTuple):
    """Where a case is tried: what this process has, the other takes over."""

    device: str
    """cpu or cuda:N"""
    gpu_share: float
    """Of the GPU's memory."""
    threads: int
    onednn: bool
    """Whether float32 products on a CPU may be made by oneDNN."""


def place_of(device: torch.device, *, onednn: bool) -> Place:
    """Return the place that this process computes at."""
    share = torch.cuda.get_per_process_memory_fraction(device) if device.type == "cuda" else 1.0
    return Place(str(device), share, torch.get_num_threads(), onednn)


def probed(
    case: LoopCase, place: Place, loops: Mapping[str, str], *, limit_s: float = LIMIT_S, each_s: float = EACH_S
) -> list[Trial]:
    """Try implementations (functions as "module:name", by name) in their order; return what came of each."""
    deadline_s, trials = time.monotonic() + limit_s, list[Trial]()
    while (left := list(loops)[len(trials) :]) and (left_s := deadline_s - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory(prefix="zfdist-loops-") as folder:
            right = {trial.name: loops[trial.name] for trial in trials if trial.problem is None}
            given = {"case": case._asdict(), "place": place._asdict(), "each_s": each_s, "limit_s": left_s}
            given |= {"right": right, "loops": {name: loops[name] for name in left}}
            Path(folder, "given.json").write_text(json.dumps(given))
            ended = _process(Path(folder), left_s)
            lines = _lines(Path(folder, "trials.jsonl"))
        trials += [Trial(**line) for line in lines if "name" in line]
        trials = [_by_turns(trial, lines) for trial in trials]
        left = list(loops)[len(trials) :]
        if time.monotonic() >= deadline_s or not left:
            break
        if not lines:  # it came to none of them, and another would not either
            return trials + [Trial(name, problem=f"could not be tried: {_words(ended, each_s)}") for name in left]
        if ended != _WENT_WRONG or len(lines) == 1:
            trials.append(Trial(left[0], problem=_words(ended, each_s)))
    late = f"was not tried: {limit_s:g} s were over"
    return trials + [Trial(name, problem=late, may_change=True) for name in list(loops)[len(trials) :]]


def _by_turns(trial: Trial, lines: list[dict[str, Any]]) -> Trial:
    """Return a trial with the time that it took in turns with the others, if that is shorter."""
    found = [line["turns"][trial.name] for line in lines if trial.name in line.get("turns", {})]
    return trial if trial.seconds is None else trial._replace(seconds=min([trial.seconds, *found]))


def _process(folder: Path, limit_s: float) -> int | str:
    """Run the process; return its exit code, minus a signal's number, or the last line of its error."""
    words = [sys.executable, "-m", __name__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with Path(folder, "stderr").open("w") as errors:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what compiles for it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DEATH_S)
    if code <= 0 or code == _WENT_WRONG:
        return code
    said = [line for line in Path(folder, "stderr").read_text(errors="replace").splitlines() if line.strip()]
    return said[-1].strip() if said else f"exit code {code}"


def _words(ended: int | str, limit_s: float) -> str:
    if ended == -signal.SIGALRM:
        return f"took longer than {limit_s:.0f} s"
    if isinstance(ended, str):
        return ended
    return f"ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended its process (exit code {ended})"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return what the process has written, without a line that its end cut off."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _work(folder: Path) -> int:
    """Be the process: try what `folder` tells, and write a line for each as it comes, after one that begins."""
    given = json.loads(Path(folder, "given.json").read_text())
    case, place, each_s = LoopCase(**given["case"]), Place(**given["place"]), given["each_s"]
    device = torch.device(place.device)
    signal.setitimer(signal.ITIMER_REAL, given["limit_s"])  # should whoever waits for it be killed
    torch.set_num_threads(place.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(place.gpu_share, device)
    with (
        matmul_backend.float32(device, case.precision, onednn=place.onednn),
        Path(folder, "trials.jsonl").open("w", buffering=1) as out,
    ):
        arguments = loop_trial.example(case, device)
        wanted = loop_trial.exact(case, arguments)
        out.write("{}\n")
        for name, where in given["loops"].items():
            signal.setitimer(signal.ITIMER_REAL, each_s)
            trial = _trial(case, name, where, arguments, wanted)
            out.write(json.dumps(trial._asdict()) + "\n")
            if trial.problem:
                return _WENT_WRONG
        signal.setitimer(signal.ITIMER_REAL, each_s)
        runs = {name: found(where) for name, where in (given["right"] | given["loops"]).items()}
        out.write(json.dumps({"turns": loop_trial.by_turns(runs, arguments, _TURNS_S)}) + "\n")
    return 0


def _trial(case: LoopCase, name: str, where: str, arguments: object, wanted: list[torch.Tensor]) -> Trial:
    try:
        return loop_trial.tried(case, name, found(where), arguments, wanted)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        return Trial(name, problem="does not fit into the GPU's memory", may_change=True)
    except Exception as error:  # whatever a compiler, a driver or a loop raises: it is out, with its reason
        lines = str(error).strip().splitlines()
        return Trial(name, problem=f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])


if __name__ == "__main__":
    # torch ends a process without its buffers being freed in order: after a lie they may be damaged.
    os._exit(_work(Path(sys.argv[1])))
