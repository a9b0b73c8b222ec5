"""Figure 2, the KL term over training, and Table 3, sentences between two sentences, from runs."""

from pathlib import Path

from jobs.reporting import draw_samples, figures, paper_rows, run_history, write_samples
from jobs.reporting.paper_tables import Task
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
    keyed = sorted((str(paper_rows.key_of("figure2", h.config)), h.config.train.seed, h) for h in past)
    names = ("figure2.png", "figure2.csv", "figure2.md")
    png, table, page = (task.out / name for name in names)
    figures.kl_curves(png, past)
    lines = ["| model | seed | update | KL, nats per frame | ELBO, nats per sequence |", "|---|---|---|---|---|"]
    rows: list[tuple[object, ...]] = [("row", "run", "seed", "step", "kl_nats_per_frame", "elbo_nats")]
    for key, seed, one in keyed:
        records = [r for r in one.records if r.get("train/kl_nats_per_frame") is not None]
        for record in records:
            numbers = (record["step"], record["train/kl_nats_per_frame"], record.get("train/elbo_nats"))
            rows.append((key, one.folder, seed, *numbers))
        if records:
            last = records[-1]
            kl, elbo = last["train/kl_nats_per_frame"], last.get("train/elbo_nats") or float("nan")
            lines.append(f"| {paper_rows.LABELS[key]} | {seed} | {last['step']:,} | {kl:.4f} | {elbo:,.1f} |")
    atomic_io.write_csv(table, rows)
    text = (
        "The KL term in training, with and without the auxiliary cost. The paper prints a figure without numbers: "
        "what compares is whether the cost keeps the KL term up."
    )
    parts = ("# Figure 2", text, f"![KL over updates]({png.name})", "\n".join(lines))
    atomic_io.write(page, "\n\n".join(parts) + "\n")
    return [png, table, page]


def table3(task: Task) -> list[Path]:
    """Write sentences between two of the test split, for the best run of sentences; return CSV and Markdown.

    Raises:
        HistoryError: if none of the runs is of sentences.
    """
    past = [h for h in run_history.read(task.runs) if paper_rows.key_of("table3", h.config)]
    if not past:
        raise run_history.HistoryError(
            "table3 mixes sentences, and none of the runs is of zforcing with density categorical; "
            "for sound and images there is jobs.generate --what interpolation"
        )
    sentences = _between(past[0].folder, past[0].config.train.seed)
    task.out.mkdir(parents=True, exist_ok=True)
    rows = [(f"{w:.1f}", sentences[f"greedy-{w:.1f}"], sentences[f"sampled-{w:.1f}"]) for w in draw_samples.WEIGHTS]
    head = ("weight", "greedy", "sampled")
    path, page = task.out / "table3.csv", task.out / "table3.md"
    atomic_io.write_csv(path, (head, *rows))
    originals = [text for name, text in sentences.items() if name.startswith("original")]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * 3, *rows)]
    text = (
        f"`{past[0].folder}`: posterior samples of two sentences, mixed step by step, decoded greedily and by "
        "sampling. The paper prints sentences of another data set: there is no number to compare. As in its code, "
        "<unk> has no probability; its code keeps the best of several drawn, here a sentence is what comes first."
    )
    quoted = f"> {originals[0]}\n>\n> {originals[1]}"
    atomic_io.write(page, "\n\n".join(("# Table 3", text, quoted, "\n".join(lines))) + "\n")
    return [path, page]


def _between(run: Path, seed: int) -> dict[str, str]:
    """Return the two sentences and those between them by the names of their pieces."""
    from zfdist.data.store import Store
    from zfdist.evaluation.evaluate import load_model

    loaded = load_model(run)
    store = Store.open(loaded.config.data.root, verify=loaded.config.data.verify, cache=loaded.config.data.cache)
    request = draw_samples.Request(
        what="interpolation",
        split="test",
        num=2,
        frames=_FRAMES,
        prefix_frames=1,
        between=None,
        temperature_z=1.0,
        temperature_x=1.0,
        with_unknown=False,
        seed=seed,
    )
    words = store.vocabulary()
    return {piece.name: write_samples.text(piece, words) for piece in draw_samples.pieces(loaded, store, request)}
