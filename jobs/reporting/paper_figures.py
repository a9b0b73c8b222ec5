"""Figure 2, the KL term over training, and Table 3, sentences between two sentences, from runs."""

from collections.abc import Sequence
from pathlib import Path

from jobs.reporting import draw_samples, figures, paper_rows, run_history, show
from jobs.reporting.paper_tables import Task
from jobs.reporting.run_history import History
from zfdist import atomic_io

_FRAMES = 20


def figure2(task: Task) -> list[Path]:
    """Draw the KL term of all runs of zforcing, with and without auxiliary cost; return PNG, CSV and Markdown.

    Raises:
        HistoryError: if a folder is neither a run nor a sweep, or none is of zforcing.
    """
    past = [h for h in run_history.read(task.runs) if paper_rows.key_of("figure2", h.config)]
    if not past:
        raise run_history.HistoryError("figure2: none of the runs is of zforcing")
    data_sets = run_history.by_data_set(past)
    if len(data_sets) > 1:
        named = "; ".join(data_set.shown for data_set in data_sets)
        raise run_history.HistoryError(f"figure2: the runs are of different data ({named}); name those of one")
    (data_set,) = data_sets
    frame, sequence = data_set.kind.frame, data_set.kind.sequences[past[0].config.data.train_view]
    keys = {id(h): str(paper_rows.key_of("figure2", h.config)) for h in past}
    past.sort(key=lambda h: (keys[id(h)], h.config.train.seed, str(h.folder)))
    names = ("figure2.png", "figure2.csv", "figure2.md")
    png, table, page = (task.out / name for name in names)
    figures.kl_curves(png, past, data_set.kind)
    lines = [f"| model | run | seed | update | KL, nats per {frame} | ELBO, nats per {sequence} |", "|---" * 6 + "|"]
    rows: list[tuple[object, ...]] = [("row", "run", "seed", "step", "kl_nats_per_frame", "elbo_nats")]
    for one in past:
        key, seed = keys[id(one)], one.config.train.seed
        records = [r for r in one.records if r.get("train/kl_nats_per_frame") is not None]
        for record in records:
            numbers = (record["step"], record["train/kl_nats_per_frame"], record.get("train/elbo_nats"))
            rows.append((key, one.folder, seed, *numbers))
        if records:
            last = records[-1]
            kl, elbo = last["train/kl_nats_per_frame"], last.get("train/elbo_nats") or float("nan")
            lines.append(
                f"| {paper_rows.LABELS[key]} | `{one.name}` | {seed} | {last['step']:,} | {kl:.4f} | {elbo:,.1f} |"
            )
    atomic_io.write_csv(table, rows)
    text = (
        "The KL term in training, with and without the auxiliary cost. The paper prints a figure without numbers: "
        "what compares is whether the cost keeps the KL term up."
    )
    parts = ("# Figure 2", text, f"![KL over updates]({png.name})", "\n".join(lines))
    atomic_io.write(page, "\n\n".join(parts) + "\n")
    return [png, table, page]


def table3(task: Task) -> list[Path]:
    """Write sentences between two of the test split, by the run with the largest KL term; return CSV and Markdown.

    What is mixed are latents: the run with the best bound may well be one that has learnt to do without them.

    Raises:
        HistoryError: if none of the runs is of sentences.
    """
    past = [h for h in run_history.read(task.runs) if paper_rows.key_of("table3", h.config)]
    if not past:
        raise run_history.HistoryError(
            "table3 mixes sentences, and none of the runs is of zforcing with density categorical; "
            "for sound and images there is jobs.generate --what interpolation"
        )
    chosen = max(past, key=lambda h: h.best.kl_nats_per_frame if h.best else float("-inf"))
    step, sentences = _between(chosen.folder, chosen.config.train.seed)
    task.out.mkdir(parents=True, exist_ok=True)
    rows = [(f"{w:.1f}", sentences[f"greedy-{w:.1f}"], sentences[f"sampled-{w:.1f}"]) for w in draw_samples.WEIGHTS]
    head = ("weight", "greedy", "sampled")
    path, page = task.out / "table3.csv", task.out / "table3.md"
    atomic_io.write_csv(path, (head, *rows))
    originals = [text for name, text in sentences.items() if name.startswith("original")]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * 3, *rows)]
    text = (
        f"`{chosen.folder}` at update {step:,}: posterior samples of two sentences, mixed step by step, decoded "
        "greedily and by sampling. The paper prints sentences of another data set: there is no number to compare. As "
        "in its code, "
        "<unk> has no probability; its code keeps the best of several drawn, here a sentence is what comes first."
    )
    quoted = f"> {originals[0]}\n>\n> {originals[1]}"
    parts = ("# Table 3", text, _latents(past, chosen), quoted, "\n".join(lines))
    atomic_io.write(page, "\n\n".join(parts) + "\n")
    return [path, page]


def _latents(past: Sequence[History], chosen: History) -> str:
    """Say how much the latents tell of a sentence in the run that was chosen, and in the others."""
    named = [chosen, *(history for history in past if history is not chosen)]
    told = [
        f"`{h.name}` {h.best.kl_nats_per_frame:.3f} (ELBO {h.best.elbo_nats:,.1f}, update {h.best.step:,})"
        for h in named
        if h.best
    ]
    return f"KL on the validation split, nats per word: {', '.join(told)}; the largest is taken." if told else ""


def _between(run: Path, seed: int) -> tuple[int, dict[str, str]]:
    """Return the step of the weights, and the two sentences and those between them by the names of their pieces."""
    from zfdist.evaluation.evaluate import data_of, load_model

    loaded = load_model(run)
    store = data_of(loaded)
    request = draw_samples.Request(
        what="interpolation",
        split="test",
        num=2,
        frames=_FRAMES,
        prefix_frames=1,
        with_unknown=False,
        seed=seed,
    )
    words = store.vocabulary()
    texts = {piece.name: show.text(piece, words) for piece in draw_samples.pieces(loaded, store, request)}
    return loaded.manifest.step, texts
