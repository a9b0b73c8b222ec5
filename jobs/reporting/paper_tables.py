"""A table of the paper from runs: our numbers, over runs of the same row, beside the published ones."""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.reporting import paper_rows, run_history
from jobs.reporting.paper_published import PUBLISHED, Published
from zfdist import atomic_io
from zfdist.data.kinds import KINDS, PCM16, Kind

if TYPE_CHECKING:
    from zfdist.config import Config, ModelConfig

DATA_SETS = {"pcm16": ("timit", "blizzard"), "bits": ("mnist",), "tokens": ("imdb",)}
"""Those of published numbers by what they are; of other kinds of data nothing is published."""
_NAMES = {"timit": "TIMIT", "blizzard": "Blizzard", "mnist": "MNIST", "imdb": "IMDB"}
_SYMBOLS = {">=": "\u2265 ", "<=": "\u2264 ", "~": "\u2248 ", "=": ""}
_COLUMNS = (
    "table", "row", "origin", "data_set", "metric", "relation", "value", "stderr", "runs", "parameters", "updates",
    "mark", "source", "like_for_like", "why_not",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which table, of which runs, and how they are evaluated."""

    table: str
    runs: Sequence[Path]
    """Run and sweep folders."""
    out: Path
    num_samples: int
    """Of IWAE; 0 for none."""


class Ours(NamedTuple):
    """A run that belongs to a row, evaluated."""

    key: str
    name: str
    config: "Config"
    numbers: Mapping[str, Any]
    """Fields of its evaluation on the test split; those on the validation split have "valid/" before their names."""


def write(task: Task, alpha: float, say: Callable[[str], None]) -> list[Path]:
    """Evaluate the runs and write TABLE.csv and TABLE.md; evaluations are kept and not made again.

    Raises:
        HistoryError: if a folder is neither a run nor a sweep, or none belongs to the table.
    """
    found, problems = _evaluated(task, say)
    kind = KINDS[found[0].numbers["kind"]]
    rows = paper_rows.rows(task.table, found[0].config, alpha)
    by_key: dict[str, list[Ours]] = {row.key: [] for row in rows}
    labels = {row.key: row.label for row in rows}
    for one in found:
        by_key.setdefault(one.key, []).append(one)
    sources = [p for p in PUBLISHED if p.table == task.table and p.data_set in DATA_SETS.get(kind.name, ())]
    converters = {str(one.numbers["converter"]) for one in found}
    lines = [*_our_lines(task.table, by_key, kind), *(_published_line(p, converters) for p in sources)]
    task.out.mkdir(parents=True, exist_ok=True)
    csv_path, md_path = task.out / f"{task.table}.csv", task.out / f"{task.table}.md"
    atomic_io.write_csv(csv_path, [_COLUMNS, *([line.get(name, "") for name in _COLUMNS] for line in lines)])
    page = "\n\n".join(_page(task, kind, by_key, labels, sources, converters, problems))
    atomic_io.write(md_path, page + "\n")
    return [csv_path, md_path]


def _evaluated(task: Task, say: Callable[[str], None]) -> tuple[list[Ours], list[str]]:
    """Evaluate each run of the table; return also why some could not be."""
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.checkpoint import run_folder
    from zfdist.checkpoint.folder import CheckpointError

    found, problems = [], []
    runs = run_history.read(task.runs)
    for number, past in enumerate(runs, start=1):
        key = paper_rows.key_of(task.table, past.config)
        if key is None:
            problems.append(f"`{past.folder}` belongs to no row of {task.table}.")
            continue
        try:
            numbers = _numbers(task, past.folder, f"{number} of {len(runs)}", say)
            found.append(Ours(key, str(past.folder), past.config, numbers))
            if past.best and past.best.step != numbers["step"]:
                problems.append(f"`{past.folder}`: {run_folder.choice(past.folder, checkpoint.scores(past.folder))}.")
        except CheckpointError as error:
            problems.append(f"`{past.folder}` ({key}, {past.state}) is not evaluated: {error}.")
    if not found:
        raise run_history.HistoryError(
            f"no run to put into {task.table}: {problems[0] if problems else 'none was named'}"
        )
    if len({one.numbers["kind"] for one in found}) > 1:
        raise run_history.HistoryError(f"the runs of {task.table} are of different kinds of data; name those of one")
    return found, problems


def _numbers(task: Task, run: Path, place: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the evaluation of a run, from the file of an earlier one if its weights are the same.

    `place` is the run's among all, for whoever waits.
    """
    from jobs.reporting import evaluation_table
    from zfdist.checkpoint import folder as checkpoint
    from zfdist.data.store import Store
    from zfdist.evaluation import scores
    from zfdist.evaluation.bounds import Importance
    from zfdist.evaluation.evaluate import load_model, on_split
    from zfdist.evaluation.results import Question

    folder = checkpoint.resolve(run)
    manifest = checkpoint.read_manifest(folder)
    data = manifest.config.data
    store = Store.open(data.root, verify=data.verify, cache=data.cache)
    decisive = (manifest.files[checkpoint.WEIGHTS]["xxh3_128"], manifest.config.to_json(), store.fingerprint)
    name = hashlib.blake2b("\n".join((*decisive, str(task.num_samples))).encode(), digest_size=12).hexdigest()
    kept = task.out / "evaluations" / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    say(f"evaluating {run} ({place}) ...")
    loaded = load_model(folder)
    numbers: dict[str, Any] = {"converter": store.manifest.source.get("converter", "?")}
    is_valid_too = any(metric.startswith("valid/") for metric in _metrics(store.kind))
    for split, prefix in (("test", ""), ("valid", "valid/"))[: 1 + is_valid_too]:
        question = Question(
            split=split,
            seeds=[loaded.config.train.seed],
            importance=Importance(samples=task.num_samples) if task.num_samples else None,
            with_legacy_denominator=store.kind == PCM16,  # of TIMIT's code
        )
        result, sequences = on_split(loaded, question)
        scores.keep(sequences, folder, say)
        fields = json.loads(evaluation_table.to_json(result))
        numbers |= {prefix + name: value for name, value in fields.items()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_io.write_json(kept, numbers)
    return numbers


def _over_runs(runs: Sequence[Ours], metric: str) -> tuple[float, float] | None:
    """Return mean and standard error (NaN for one run) of a metric; None if it was not measured or there is none."""
    if metric.startswith("kl") and any(_is_exact(one.config.model) for one in runs):
        return None
    values = [float(one.numbers[metric]) for one in runs if one.numbers.get(metric) is not None]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if values[1:] else math.nan


def _metrics(kind: Kind) -> dict[str, str]:
    """Return the numbers of a table on a kind of data, and what their columns are called."""
    sequence = next(iter(kind.sequences.values())) if len(kind.sequences) == 1 else "sequence"
    if kind.score == "nll_nats":
        return {"nll_nats": f"NLL, nats per {sequence}", "kl_nats": "KL, nats"}
    if kind.score == "perplexity":
        return {
            "valid/perplexity": "valid perplexity, ELBO",
            "valid/iwae_perplexity": "valid perplexity, IWAE",
            "perplexity": "test perplexity, ELBO",
            "iwae_perplexity": "test perplexity, IWAE",
            "kl_nats": "KL, nats",
        }
    return {"elbo_nats": f"ELBO, nats per {sequence}", "kl_nats_per_frame": f"KL, nats per {kind.frame}"}


def _our_lines(table: str, by_key: Mapping[str, Sequence[Ours]], kind: Kind) -> Iterator[dict[str, Any]]:
    for key, runs in by_key.items():
        columns = _metrics(kind)
        metrics = (*columns, *({"iwae_nats", "iwae_nll_nats", "legacy_elbo_nats"} - columns.keys()))
        for metric in sorted(metrics):
            measured = _over_runs(runs, metric)
            if measured is None:
                continue
            mean, error = measured
            yield {
                "table": table,
                "row": key,
                "origin": "ours",
                "data_set": runs[0].config.data.root,
                "metric": metric,
                "relation": _relation(metric, runs[0].config.model),
                "value": mean,
                "stderr": "" if math.isnan(error) else error,
                "runs": len(runs),
                "parameters": runs[0].numbers["parameters"],
                "updates": runs[0].numbers["step"],
            }


def _relation(metric: str, model: "ModelConfig") -> str:
    """Return how the true figure relates to a measured one."""
    if _is_exact(model) or metric.startswith("kl"):
        return "="
    return "<=" if "perplexity" in metric or "nll" in metric else ">="


def _is_exact(model: "ModelConfig") -> bool:
    """Tell whether a system gives the likelihood itself, and so has no KL term."""
    from zfdist.model import systems

    return not systems.network_of(model).has_latents


def _published_line(published: Published, converters: set[str]) -> dict[str, Any]:
    line = {name: value for name, value in published._asdict().items() if name in _COLUMNS}
    why_not = _why_not(published, converters)
    return line | {"origin": "published", "like_for_like": "no" if why_not else "yes", "why_not": why_not}


def _why_not(published: Published, converters: set[str]) -> str:
    """Return why a published number is not like for like with ours; empty if it is."""
    other = ""
    if published.data_set == "imdb":  # a converter of any text reads it
        other = f"whether ours are of {_NAMES['imdb']} is not recorded, only that they were prepared as text"
    elif converters != {published.data_set}:
        other = f"ours are not on {_NAMES[published.data_set]}"
    return "; ".join(reason for reason in (other, published.why_not) if reason)


def _page(
    task: Task,
    kind: Kind,
    by_key: Mapping[str, Sequence[Ours]],
    labels: Mapping[str, str],
    sources: Sequence[Published],
    converters: set[str],
    problems: Sequence[str],
) -> Iterator[str]:
    runs = [one for group in by_key.values() for one in group]
    roots = ", ".join(sorted({f"`{one.config.data.root}`" for one in runs}))
    metrics = _metrics(kind)
    yield "# Beyond the paper" if task.table == "beyond" else f"# {task.table.replace('table', 'Table ')}"
    yield (
        f"Ours: {len(runs)} run{'s' * (len(runs) > 1)} on {roots}, each at the checkpoint with its best validation "
        "ELBO, whose step is its updates; KL weight 1, no auxiliary cost. \u00b1 is the standard error over training "
        "seeds."
    )
    columns = list(dict.fromkeys((p.data_set, p.metric) for p in sources))
    head = ["model", *(f"ours: {title}" for title in metrics.values()), "runs", "parameters", "updates"]
    head += [f"published: {_NAMES[data_set]} {metrics.get(m, m)}" for data_set, m in columns]
    notes: list[str] = []
    lines = []
    for key in dict.fromkeys([*by_key, *(p.row for p in sources)]):
        group = by_key.get(key, [])
        cells = [_measured(group, metric) for metric in metrics]
        cells += [str(len(group)), _all(group, "parameters"), _all(group, "step")] if group else ["", "", ""]
        cited = {(p.data_set, p.metric): _cited(p, converters, notes) for p in sources if p.row == key}
        cells += [cited.get(column, "") for column in columns]
        lines.append([labels.get(key, key), *cells])
    yield "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))
    if notes:
        yield (
            "Published numbers are marked V (verified in the source), R (recalled) or C (computed), and \u2020 where "
            "they are not like for like with ours:"
        )
        yield "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    yield from problems


def _measured(runs: Sequence[Ours], metric: str) -> str:
    measured = _over_runs(runs, metric)
    if measured is None:
        return ""
    form = ",.1f" if abs(measured[0]) >= 1000 else ",.2f"
    mean, error = (format(value, form) for value in measured)
    return mean if math.isnan(measured[1]) else f"{mean} \u00b1 {error}"


def _all(runs: Sequence[Ours], name: str) -> str:
    """Return a count that runs share, or its range."""
    counts = sorted({int(one.numbers[name]) for one in runs})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _cited(published: Published, converters: set[str], notes: list[str]) -> str:
    why_not = _why_not(published, converters)
    note = f"{published.mark}: {published.source}" + (f". Not like for like: {why_not}" if why_not else "")
    if note not in notes:
        notes.append(note)
    value = f"{published.value:,.0f}" if abs(published.value) >= 1000 else f"{published.value:,.2f}"
    return f"{_SYMBOLS[published.relation]}{value}{chr(0x2020) if why_not else ''} [{notes.index(note) + 1}]"
