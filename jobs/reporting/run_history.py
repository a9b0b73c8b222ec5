"""What run folders say about their runs: configs, curves, how far each came and how well it did."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zfdist import run_protocol
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import run_folder
from zfdist.checkpoint.folder import CONFIG
from zfdist.config import Config, KLConfig
from zfdist.errors import ZfdistError

TRIALS = "trials"
KL_WEIGHT = "loss.kl"
"""Stands for all knobs of the KL schedule together, since some say nothing beside others."""
_LONGEST_LABEL = 46
_SHORT = {"loss.alpha": "alpha", "loss.beta": "beta", KL_WEIGHT: "KL weight"}


class HistoryError(ZfdistError):
    """A path that is neither a run nor a sweep, or one that cannot be read; names it and what it lacks."""


class Curve(NamedTuple):
    """A metric over optimizer steps."""

    steps: list[int]
    values: list[float]


class Validation(NamedTuple):
    """A bound on the validation split."""

    step: int
    elbo_nats: float
    """ELBO per sequence, KL weight 1."""
    kl_nats_per_frame: float


@dataclass(frozen=True, kw_only=True)
class History:
    """One run, as its folder tells it."""

    name: str
    folder: Path
    config: Config
    records: Sequence[dict[str, Any]]
    """Lines of metrics.jsonl."""
    state: str
    """finished, stopped (by a sweep), diverged, or unfinished."""
    is_trial: bool

    @property
    def step(self) -> int:
        """Optimizer steps that were logged."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def best(self) -> Validation | None:
        """The validation with the highest ELBO; None if there was none."""
        seen = [
            Validation(r["step"], r["valid/elbo_nats"], r["valid/kl_nats_per_frame"])
            for r in self.records
            if r.get("valid/elbo_nats") is not None
        ]
        return max(seen, key=lambda v: v.elbo_nats, default=None)

    def curve(self, name: str) -> Curve:
        """Return a metric over steps, without the lines where it is absent or not finite."""
        points = [(r["step"], r[name]) for r in self.records if r.get(name) is not None]
        return Curve([step for step, _ in points], [value for _, value in points])

    @property
    def is_annealed(self) -> bool:
        """Whether the KL term ever weighs less than 1."""
        return self.config.loss.kl.kind != "constant" and self.config.loss.kl.start < 1.0

    @property
    def settings(self) -> dict[str, str]:
        """Its config as text by dotted name, with the KL schedule as one entry."""
        flat = {n: _text(v) for n, v in self.config.flat().items() if not n.startswith(KL_WEIGHT + ".")}
        return flat | {KL_WEIGHT: kl_schedule(self.config.loss.kl)}


def read(paths: Iterable[Path]) -> list[History]:
    """Return the runs in the given run and sweep folders, the best validation ELBO first.

    Raises:
        HistoryError: if a path is neither a run nor a sweep.
    """
    found: dict[Path, History] = {}
    for path in paths:
        trials = [folder for folder in _folders(path / TRIALS) if _is_run(folder)]
        for folder in trials or [path]:
            found[folder.resolve()] = _history(folder, is_trial=bool(trials))
    return sorted(found.values(), key=lambda h: h.best.elbo_nats if h.best else float("-inf"), reverse=True)


def varied(histories: Sequence[History]) -> list[str]:
    """Return the names in `settings` that are not the same for all runs."""
    if not histories:
        return []
    return [name for name in histories[0].settings if len({h.settings[name] for h in histories}) > 1]


def short(name: str) -> str:
    """Return a name for a table's head, e.g. alpha for loss.alpha."""
    return _SHORT.get(name, name)


def labels(histories: Sequence[History]) -> list[str]:
    """Return what figures call each run: a trial by what was varied, if that is short, another run by its name."""
    names = varied(histories)

    def label(history: History) -> str:
        text = ", ".join(f"{_symbol(name)} {history.settings[name]}" for name in names)
        return text if history.is_trial and 0 < len(text) <= _LONGEST_LABEL else history.name

    return [label(history) for history in histories]


def kl_schedule(kl: KLConfig) -> str:
    """Return the weight of the KL term over steps in words, e.g. "from 0.2 by 5e-05"."""
    weight = f"from {kl.start:g} by {kl.increment:g}"
    if kl.kind == "constant" or kl.start == 1.0:
        weight = "always 1"
    elif kl.kind == "cyclical":
        weight += f", anew each {kl.period_steps:,}"
    return weight + (f", {kl.free_nats_per_frame:g} nats free" if kl.free_nats_per_frame else "")


def _history(folder: Path, *, is_trial: bool) -> History:
    if not _is_run(folder):
        raise HistoryError(f"{folder}: neither a run (no {CONFIG}) nor a sweep (no {TRIALS}/ with runs)")
    config = run_folder.config_of(folder)
    if config is None:
        raise HistoryError(
            f"{folder}: neither its {CONFIG} nor the manifest of a checkpoint can be read by this version; "
            "restore one from a backup, or leave this run out"
        )
    result = run_protocol.result(folder)
    return History(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        records=list(run_protocol.records(folder)),
        state="unfinished" if result is None else result["state"],
        is_trial=is_trial,
    )


def _folders(parent: Path) -> list[Path]:
    """Return what is in a folder, by name; nothing if there is none."""
    try:
        return sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or bool(checkpoint.steps(folder))


def _symbol(name: str) -> str:
    known = {"loss.alpha": "\N{GREEK SMALL LETTER ALPHA}", "loss.beta": "\N{GREEK SMALL LETTER BETA}", KL_WEIGHT: "KL"}
    return known.get(name, name.rpartition(".")[2])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
