"""One case of `jobs.gpu` in a process of its own: runs of one config, and whether their bits are equal.

`python -m jobs.cli.gpu_case CONFIG.json FOLDER [once]` trains twice from one seed, and once more cut in the middle and
resumed; or `once`. The last line that it prints is JSON, see `Case`.
"""

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfdist.config import Config
from zfdist.run_protocol import records


@dataclass(frozen=True)
class Case:
    """What was found; None where it was not tried."""

    elbo_nats: float
    """Of the validation after the last step."""
    step_s: float
    """Seconds of a step in the last log window of the first run."""
    again_is_equal: bool | None
    """Whether a second run of the seed ends in the same bytes, see `final_bytes`."""
    resumed_is_equal: bool | None
    """Whether a run that was cut in the middle and resumed does."""


class StopAt:
    """Asks a run to save and end after a step."""

    def __init__(self, step: int | None) -> None:
        self._step, self._at = step, 0

    def report(self, metrics: dict[str, float], checkpoint_folder: Path | None) -> None:
        """Do nothing: the run's files tell."""

    def progress(self, step: int) -> None:
        """Remember how far it is."""
        self._at = step

    def should_stop(self) -> bool:
        """Return whether the step is reached."""
        return self._at == self._step


def measured(config: Config, folder: Path, *, once: bool) -> Case:
    """Train the runs of a case below `folder`, and compare them."""
    from zfdist.train import train
    from zfdist.world import connect

    world, steps = connect(), config.train.steps
    parts: list[tuple[str, int | None]] = [("first", None)]
    if not once:
        parts += [("second", None), ("cut", steps // 2), ("cut", None)]
    for name, stop in parts:
        train(config, folder / name, world, StopAt(stop))
    lines = list(records(folder / "first"))
    last: dict[str, Any] = {name: value for line in lines for name, value in line.items()}
    first = final_bytes(folder / "first", steps)
    equal = [None if once else final_bytes(folder / name, steps) == first for name in ("second", "cut")]
    return Case(last["valid/elbo_nats"], last["speed/step_s"], *equal)


def final_bytes(run: Path, steps: int) -> dict[str, bytes]:
    """Return, of the last checkpoint, the weights and under ZeRO the optimizer's state: bytes of files by name."""
    folder = run / f"checkpoints/step-{steps:08d}"
    files = [*folder.rglob("*.safetensors"), *folder.rglob("*optim_states.pt")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main(argv: list[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    folder = Path(argv[1])
    try:
        case = measured(Config.from_json(Path(argv[0]).read_text()), folder, once="once" in argv)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(dataclasses.asdict(case)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
