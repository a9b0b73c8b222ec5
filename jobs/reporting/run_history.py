"""What run folders say about their runs: configs, curves, how far each came and how well it did."""

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zfdist import run_protocol
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import run_folder
from zfdist.checkpoint.folder import CONFIG, CheckpointError
from zfdist.config import Config, KLConfig
from zfdist.data import kinds
from zfdist.data.kinds import Kind
from zfdist.errors import ZfdistError

if TYPE_CHECKING:
    from zfdist.model.networks.network import Network

TRIALS = "trials"
KL_WEIGHT = "loss.kl"
"""Stands for all knobs of the KL schedule together, since some say nothing beside others."""
_SYSTEM = "model.system"
_LONGEST_LABEL = 46
_TITLES = {"zforcing": "Z-Forcing"}
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
    nats_per_sample: float
    """ELBO per scored sample; NaN in records of a time when it was not written."""


class DataSet(NamedTuple):
    """What must be the same for bounds to compare: the data, and which sequences of them are scored."""

    shown: str
    """The data set's folder, and which sequences, as people should read it."""
    identity: str
    """Equal exactly for the same sequences."""
    kind: Kind


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
        r = run_protocol.best_validation(self.records)
        if r is None:
            return None
        per_sample = r.get("valid/nats_per_sample", math.nan)
        return Validation(r["step"], r[run_protocol.VALID_ELBO], r["valid/kl_nats_per_frame"], per_sample)

    def curve(self, name: str) -> Curve:
        """Return a metric over steps, without the lines where it is absent or not finite."""
        points = [(r["step"], r[name]) for r in self.records if r.get(name) is not None]
        return Curve([step for step, _ in points], [value for _, value in points])

    @property
    def is_annealed(self) -> bool:
        """Whether the KL term ever weighs less than 1."""
        return self.config.loss.kl.kind != "constant" and self.config.loss.kl.start < 1.0

    @property
    def system(self) -> str:
        """What people call its system, e.g. "Z-Forcing" or "VRNN"."""
        return title_of(self.config.model.system)

    @property
    def is_exact(self) -> bool:
        """Whether its bound is the log-likelihood itself, and there is no KL term."""
        return not self._network.has_latents

    @property
    def has_aux(self) -> bool:
        """Whether an auxiliary cost has weight in its objective."""
        return self.config.loss.alpha > 0 and "alpha" in self._network.weight_of.values()

    @property
    def _network(self) -> "type[Network]":
        from zfdist.model import systems

        return systems.network_of(self.config.model)

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


def news(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return what differs once a run in the given run and sweep folders has written something, or a trial was added."""
    folders = [folder for path in paths for folder in (path, *_folders(path / TRIALS))]
    files = [folder / name for folder in folders for name in (run_protocol.METRICS, run_protocol.RESULT)]
    return [(str(file), seen.st_mtime_ns, seen.st_size) for file in files if (seen := _stat(file))]


def by_data_set(histories: Iterable[History]) -> dict[DataSet, list[History]]:
    """Return the runs of each data set, in their order; data sets in that of their folders."""
    groups: dict[str, tuple[DataSet, list[History]]] = {}
    for history in histories:
        data_set = _data_set(history)
        groups.setdefault(data_set.identity, (data_set, []))[1].append(history)
    return dict(sorted(groups.values(), key=lambda group: group[0].shown))


def title_of(system: str) -> str:
    """Return what people call a system, e.g. "Z-Forcing" for zforcing."""
    return _TITLES.get(system, system.upper())


def systems_of(histories: Iterable[History]) -> list[str]:
    """Return what people call the systems of the runs, each once."""
    return list(dict.fromkeys(history.system for history in histories))


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

    several = len(systems_of(histories)) > 1

    def label(history: History) -> str:
        others = [name for name in names if name != _SYSTEM]
        text = ", ".join(f"{_symbol(name)} {history.settings[name]}" for name in others)
        text = text if history.is_trial and len(text) <= _LONGEST_LABEL else history.name
        return ": ".join(part for part in (history.system if several else "", text) if part) or history.name

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


def _data_set(history: History) -> DataSet:
    """Say what a run's bounds are of; where its data cannot be read, by what its checkpoint and its config say."""
    from zfdist.data.store import Store, StoreError
    from zfdist.object_store import StorageError

    data = history.config.data
    saved = checkpoint.steps(history.folder)
    try:
        store = Store.open(data.root, verify="size", cache=data.cache)
        kind, fingerprint = store.kind, store.fingerprint
    except (StoreError, StorageError, OSError):
        kind, fingerprint = kinds.with_density(history.config.model.density)[0], data.root
    if saved:
        with contextlib.suppress(CheckpointError):
            fingerprint = checkpoint.read_manifest(checkpoint.folder_of(history.folder, saved[-1])).data_fingerprint
    view = kind.sequences.get(data.eval_view, data.eval_view) + "s"
    if data.eval_view == "segments":
        view += f" of {data.segment_frames} {kind.frame}s"
    if kind.frame_samples is None:
        view += f" in frames of {data.frame_samples} {kind.sample}s"
    shown = f"`{data.root}`: {kind.title}" + (f", {view}" if len(kind.sequences) > 1 else "")
    return DataSet(shown, f"{fingerprint} {view}", kind)


def _folders(parent: Path) -> list[Path]:
    """Return what is in a folder, by name; nothing if there is none."""
    try:
        return sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stat(file: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return file.stat()
    return None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or bool(checkpoint.steps(folder))


def _symbol(name: str) -> str:
    known = {"loss.alpha": "\N{GREEK SMALL LETTER ALPHA}", "loss.beta": "\N{GREEK SMALL LETTER BETA}", KL_WEIGHT: "KL"}
    return known.get(name, name.rpartition(".")[2])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
