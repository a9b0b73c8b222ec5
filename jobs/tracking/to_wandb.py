"""Runs in Weights & Biases; with WANDB_MODE=offline into files that `wandb sync` sends later."""

from collections.abc import Mapping
from pathlib import Path

import wandb

from jobs.tracking.tracker import TrackedRun


class WandbRun:
    """A run of a project; one of the same id is gone on with."""

    def __init__(self, run: TrackedRun, project: str, url: str | None) -> None:
        """`url` is that of a server of one's own, None for what WANDB_BASE_URL says."""
        self._name = run.name
        self._run = wandb.init(
            project=project,
            id=run.id,
            name=run.name,
            group=run.group or None,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, **({"base_url": url} if url else {})),
        )

    def log(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**metrics, "_timestamp": time_s}, step=step)

    def add(self, folder: Path) -> None:
        """See `Tracker`."""
        artifact = wandb.Artifact(f"{self._name}-report", type="report")
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact)

    def flush(self) -> None:
        """Nothing waits here: wandb's own process has it, and writes it also if this one dies."""

    def end(self, state: str) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=1 if state == "diverged" else 0)


begin = WandbRun
