"""A run on a real cluster as its folder and the command that follows it tell it."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

from waiting import HostError, last_lines, wait_for

from zfdist.checkpoint import folder as checkpoint
from zfdist.tail import Records


class Run:
    """A run on the cluster as its folder tells it, and the command that follows it from the laptop."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", said: Path) -> None:
        self.folder, self._process, self._said = folder, process, said
        self._records = Records(folder / "metrics.jsonl", from_start=True)
        self.steps: list[tuple[int, float]] = []
        """Every step that was ever made, redone ones too, and when."""

    def look(self) -> None:
        """Take in what the run wrote since the last look."""
        self.steps += [(r["step"], r["time_s"]) for r in self._records.new() if "optim/skipped_updates" in r]

    def wait_for(self, true: Callable[[], bool], what: str, within_s: float = 200) -> float:
        """Wait for something while the run goes on; return the seconds that took.

        Raises:
            HostError: if that takes too long, with the last lines of what the run said.
        """

        def seen() -> bool:
            self.look()
            return true()

        return wait_for(seen, f"{self.folder.name}: {what}", within_s, self._said)

    def wait_for_step(self, step: int, within_s: float = 300) -> None:
        """Wait until the run has made a step."""
        self.wait_for(lambda: (bool(self.steps) and self.steps[-1][0] >= step) or self.over(), f"step {step}", within_s)
        if self.over() and (not self.steps or self.steps[-1][0] < step):
            raise HostError(f"{self.folder.name} ended before step {step}:\n{last_lines(self.said())}")

    def wait(self, within_s: float = 400) -> int:
        """Wait until the command ends; return its exit code."""
        self.wait_for(self.over, "end of the run", within_s)
        self.look()
        return int(self._process.wait())

    def over(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def said(self) -> str:
        """Return what the command has printed."""
        return self._said.read_text(errors="replace")

    def abandon(self) -> None:
        """Stop following; the job goes on."""
        self._process.kill()
        self._process.wait()

    def losses(self) -> dict[int, float]:
        """Return the objective of each step as the run's folder has it now."""
        lines = (json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["train/objective_nats"] for line in lines if "train/objective_nats" in line}

    def weights(self) -> bytes:
        """Return the file of the newest checkpoint's parameters."""
        return (checkpoint.folder_of(self.folder, checkpoint.steps(self.folder)[-1]) / checkpoint.WEIGHTS).read_bytes()

    def pause_after(self, when_s: float, until_s: float = math.inf) -> tuple[float, int]:
        """Return seconds from `when_s` to the end of the longest pause between, and steps that were redone after it."""
        around = [i for i in range(1, len(self.steps)) if when_s < self.steps[i][1] < until_s]
        last = max(around, key=lambda i: self.steps[i][1] - self.steps[i - 1][1])
        redone = max(step for step, _ in self.steps[:last]) - self.steps[last][0] + 1
        return self.steps[last][1] - when_s, redone
