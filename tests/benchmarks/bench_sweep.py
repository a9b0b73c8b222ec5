"""A sweep's driver by the number of its trials, and what Optuna finds against random samples.

`10`, `100`, `1000`: recorded trials. The driver's own parts (the search, the scheduler's journal, the reading of what
is there) run as in a sweep; only Ray and the training are left out, and the validations come from a formula. `search`
(and `search-small`, for a look) trains tiny networks for real, on speech-like noise: the same number of trials from
random samples and from Optuna, with the same seeds.
"""

import contextlib
import io
import math
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import Options, Table

from cluster.sweep.goal import Goal
from cluster.sweep.plan import Stopping
from cluster.sweep.record import prepare
from cluster.sweep.row import Row, stop
from cluster.sweep.schedulers import Journaled, Judge, stock
from cluster.sweep.search_space import Space, draw
from cluster.sweep.searcher import NextTrial
from cluster.sweep.suggest import Known, Search, suggest
from zfdist import atomic_io
from zfdist.config import Config
from zfdist.run_protocol import RESULT, STOP

SIZES = {"10": None, "100": None, "1000": None, "search": None, "search-small": None}
_VALIDATIONS = 10
_SPACE = Space(
    choice={"loss.kl.kind": ("constant", "linear")},
    uniform={"loss.kl.start": (0.1, 0.9)},
    loguniform={"optim.learning_rate": (1e-4, 1e-1), "loss.alpha": (1e-4, 1.0), "model.hidden": (4, 32)},
)
_BASE = Config().with_values({"train.steps": 1000, "train.validate_every": 100})


def tables(options: Options) -> Iterator[Table]:
    """Yield the driver's costs, and the search if it was asked for."""
    sizes = list(options.sizes) or ["10", "100", "1000"]
    numbers = [int(size) for size in sizes if size.isdigit()]
    if numbers:
        yield _costs(numbers)
    for size in sizes:
        if size.startswith("search"):
            yield _found(trials=60 if size == "search" else 15, seeds=5 if size == "search" else 2)


def _costs(numbers: list[int]) -> Table:
    rows = []
    for number in numbers:
        for sampler in (None, "tpe"):
            with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
                rows.append((str(number), sampler or "random", *_driven(Path(folder), number, sampler)))
    return Table(
        "a sweep's driver, recorded trials of 10 validations each, ASHA",
        ("trials", "search", "ms a trial", "ms of its last tenth", "MiB more", "s to read all again"),
        rows,
        ["ms a trial: to choose, write down, hear of and decide on one, beside Ray's and the training's own time"],
    )


def _driven(folder: Path, number: int, sampler: Any) -> tuple[str, str, str, str]:
    """Drive one sweep of recorded trials, 8 at a time; return its costs."""
    record = prepare(folder, _BASE, _SPACE, samples=number, seed=0, sampler=sampler)
    before_mib, started_s = _memory_mib(), time.perf_counter()
    search = Search(_BASE, _SPACE, Goal(), sampler, 0) if sampler else None
    rows = {t.id: Row(t, folder / "trials" / t.id) for t in record.trials}
    chooser = NextTrial(rows, _job, folder, folder / STOP, search, record.to_suggest, (), 8, None)
    scheduler = Journaled(Judge(stock(Stopping(), Goal(), _BASE)), 0, rows, None)
    live: list[tuple[str, Row, int]] = []
    ends_s: list[float] = []
    turn = 0
    while True:
        while len(live) < 8 and isinstance(given := chooser.suggest(f"tune-{turn}"), dict):
            row = rows[given["job"]["id"]]
            row.state = "running"
            live.append((f"tune-{turn}", row, 0))
            turn += 1
        if not live:
            break
        name, row, done = live.pop(0)
        if _goes_on(scheduler, row, done + 1):
            live.append((name, row, done + 1))
            continue
        chooser.on_trial_complete(name)
        ends_s.append(time.perf_counter() - started_s)
    last = ends_s[-1] - ends_s[-1 - max(1, number // 10)]
    more_mib, read_s = _memory_mib() - before_mib, time.perf_counter()
    again = prepare(folder, _BASE, _SPACE, samples=number, seed=0, sampler=sampler)
    fresh = [Row(t, folder / "trials" / t.id) for t in again.trials]
    for row in fresh:
        row.read()
    Judge(stock(Stopping(), Goal(), _BASE)).replay(sorted((e for r in fresh for e in r.events), key=_order))
    read_s = time.perf_counter() - read_s
    per_trial_ms = ends_s[-1] / number * 1e3
    return f"{per_trial_ms:.1f}", f"{last / max(1, number // 10) * 1e3:.1f}", f"{more_mib:.0f}", f"{read_s:.2f}"


def _job(row: Row) -> dict[str, Any]:
    return {"id": row.trial.id}


def _order(event: Any) -> int:
    return int(event.order)


def _goes_on(scheduler: Journaled, row: Row, done: int) -> bool:
    """Give a trial's next validation; return whether it goes on."""
    rate = row.trial.values["optim.learning_rate"]
    elbo = -abs(math.log10(rate) + 2) - 3 / done + 0.1 * random.Random(f"{row.trial.id}/{done}").random()
    result = {"step": 100 * done, "valid/elbo_nats": elbo, "valid/kl_nats": 1.0}
    trial = SimpleNamespace(config={"job": _job(row)})
    if done == _VALIDATIONS:
        scheduler.on_trial_complete(None, trial, result)
        atomic_io.write_json(row.folder / RESULT, {"state": "finished", "step": 1000})
        row.state = "finished"
        return False
    if scheduler.on_trial_result(None, trial, result) == "STOP":
        stop(row, None)
        return False
    return True


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _found(trials: int, seeds: int) -> Table:
    """Train tiny networks, one after the other: random samples against Optuna's, at equal seeds."""
    looked_at = [n for n in (5, 10, 15, 20, 30, 40, 60) if n <= trials]
    best: dict[str, list[list[float]]] = {"random": [], "optuna (tpe)": []}
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        for seed in range(seeds):
            for way, curves in best.items():
                values = _searched(Path(folder), way, seed, trials)
                curves.append([max(values[:n]) for n in looked_at])
    rows = []
    for way, curves in best.items():
        at_each = list(zip(*curves, strict=True))
        error = [statistics.stdev(v) / math.sqrt(seeds) for v in at_each]
        rows.append((way, *(f"{statistics.fmean(v):.2f} +- {e:.2f}" for v, e in zip(at_each, error, strict=True))))
    return Table(
        f"best validation ELBO (nats) after so many trials, mean and standard error over {seeds} seeds",
        ("search", *map(str, looked_at)),
        rows,
        ["a network of 4 to 32 units, 120 updates; the seed is that of samples, suggestions, weights and order alike"],
    )


def _searched(folder: Path, way: str, seed: int, trials: int) -> list[float]:
    """Return the best validation ELBO of each trial of one search; a trial that diverged counts as the worst."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import harness

    from zfdist import train, world
    from zfdist.run_protocol import NonFiniteError, records

    data = folder / "data"
    if not data.exists():
        harness.make_store(data, train=60, held_out=12)
    base = harness.tiny_config(
        data, train__steps=120, train__validate_every=60, train__log_every=60, train__seed=seed,
        checkpoint__every_steps=120, checkpoint__keep_last=1,
    )  # fmt: skip
    search = Search(base, _SPACE, Goal(), "tpe", seed)
    known: list[Known] = []
    for number in range(trials):
        made = suggest(search, known, number) if way != "random" else None
        point = made.values if made else _SPACE.spoken(base.flat(), draw(base, _SPACE, seed, number))
        run = folder / f"{way[:6]}-{seed}-{number}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                train.train(base.with_values(point), run, world.connect(), harness.Recorder())
            elbo = max(r["valid/elbo_nats"] for r in records(run) if r.get("valid/elbo_nats") is not None)
            known.append(Known(point, "complete", 120, [elbo]))
        except NonFiniteError:
            known.append(Known(point, "failed"))
    worst = min(k.objectives[0] for k in known if k.objectives)
    return [k.objectives[0] if k.objectives else worst for k in known]
