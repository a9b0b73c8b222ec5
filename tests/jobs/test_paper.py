"""zfdist paper on runs that nobody trained: rows, marks, CSV, Markdown, PNG, and its messages."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import models
import pytest
from matplotlib import image

from jobs import paper
from jobs.reporting import paper_published, paper_rows
from zfdist.config import Config
from zfdist.data.kinds import BITS, TOKENS
from zfdist.evaluation.bounds import Importance
from zfdist.model import systems
from zfdist.recipes import RECIPES

AUX = {"loss__alpha": 0.015, "loss__beta": 0.015}
PLAIN = {"loss__kl__kind": "constant"}


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by name; tests only read them."""
    root = tmp_path_factory.mktemp("paper")
    images, words = (models.make_store(root / kind.name, kind) for kind in (BITS, TOKENS))
    settings: dict[str, tuple[Path, dict[str, Any]]] = {
        "rnn": (store, {"model__system": "rnn"}),
        "plain": (store, PLAIN),
        "plain-2": (store, PLAIN | {"train__seed": 5}),
        "both": (store, AUX),
        "image": (images, PLAIN),
        "image-aux": (images, PLAIN | AUX),
        **{f"words-{w:g}": (words, PLAIN | {"loss__alpha": w, "loss__beta": w}) for w in paper_rows.WEIGHTS},
    }
    for number, (name, (where, values)) in enumerate(settings.items()):
        folder = root / "runs" / name
        models.save(folder, models.config_for(where, **values))
        lines = [
            {"step": s, "time_s": s, "train/kl_nats_per_frame": 0.1 * number + s / 100, "train/elbo_nats": -9.0}
            | (
                {"valid/elbo_nats": -8.0, "valid/kl_nats": 1.0, "valid/kl_nats_per_frame": number / 10}
                if s == 20
                else {}
            )
            for s in (10, 20)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: root / "runs" / name for name in settings}


def made(table: str, out: Path, *folders: Path, argv: tuple[str, ...] = ()) -> tuple[list[dict[str, str]], str]:
    """Return the CSV's lines and the page."""
    words = [table, "--runs", *map(str, folders), "--out", str(out), *argv]
    assert paper.main(words) == 0
    with (out / f"{table}.csv").open() as file:
        return list(csv.DictReader(file)), (out / f"{table}.md").read_text()


def cells(page: str) -> dict[str, list[str]]:
    """Return the rows of a page's table by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_table_1_of_sound(runs: dict[str, Path], tmp_path: Path) -> None:
    lines, page = made("table1", tmp_path, *(runs[name] for name in ("rnn", "plain", "plain-2", "both")))
    ours = {(line["row"], line["metric"]): line for line in lines if line["origin"] == "ours"}
    assert {key for key, _ in ours} == {"rnn-gauss", "zforcing", "zforcing-kla-aux"}
    plain = ours["zforcing", "elbo_nats"]
    assert (plain["runs"], plain["relation"], float(plain["stderr"]) > 0) == ("2", ">=", True)
    assert ours["rnn-gauss", "elbo_nats"]["relation"] == "="
    assert ("rnn-gauss", "kl_nats_per_frame") not in ours, "without latents there is no KL"
    scored = float(ours["rnn-gauss", "elbo_nats"]["value"]) * 6 / 32
    assert float(ours["rnn-gauss", "legacy_elbo_nats"]["value"]) == pytest.approx(scored)
    table = cells(page)
    assert table["Z-Forcing"][0] == f"{float(plain['value']):,.2f} \u00b1 {float(plain['stderr']):,.2f}"
    assert table["Z-Forcing + kla, aux"][-2].startswith("\u2265 70,469\u2020 [")
    assert table["VRNN-GMM"][:3] == ["", "", ""] and table["STCN, Gaussian"][-1].startswith("\u2265 13,273")


def test_the_table_beyond_the_paper(runs: dict[str, Path], store: Path, tmp_path: Path) -> None:
    """Takes the rows that are its own, with their density; what has an auxiliary cost is named as none of them."""
    autoregressive = tmp_path / "autoregressive"
    models.save(autoregressive, models.config_for(store, model__system="lru", model__density="autoregressive"))
    lines, page = made("beyond", tmp_path / "out", runs["rnn"], runs["plain"], runs["both"], autoregressive)
    assert {line["row"] for line in lines} == {"rnn-gauss", "zforcing-gauss", "lru-ar"}
    table = cells(page)
    assert table["LRU, autoregressive"][1] == "" and table["Z-Forcing, Gaussian"][1] != "", "KL where there are latents"
    assert f"`{runs['both']}` belongs to no row of beyond." in page


def test_published_lines_have_source_mark_and_why_not(runs: dict[str, Path], tmp_path: Path) -> None:
    lines, page = made("table1", tmp_path, runs["plain"])
    published = [line for line in lines if line["origin"] == "published"]
    assert len(published) == sum(p.table == "table1" and p.data_set != "mnist" for p in paper_published.PUBLISHED)
    for line in published:
        assert line["mark"] in "VRC" and line["source"] and line["like_for_like"] == "no"
        assert line["why_not"].startswith("ours are not on ")
    shifted = {line["row"] for line in published if "another stream" in line["why_not"]}
    assert {"zforcing", "zforcing-aux", "Stochastic WaveNet"} <= shifted
    assert "16 of them padding: understated by 0.94 %" in page


def test_on_the_papers_own_data_some_rows_are_like_for_like() -> None:
    from jobs.reporting.paper_tables import _why_not

    like = {p.row for p in paper_published.PUBLISHED if not _why_not(p, {p.data_set})}
    assert {"srnn", "Z-Forcing + kla, aux, over 1,680", "zforcing-aux"} <= like
    assert all(p.why_not for p in paper_published.PUBLISHED if p.data_set in ("blizzard", "imdb"))


def test_published_numbers_are_the_papers() -> None:
    values = {(p.row, p.data_set, p.metric): p.value for p in paper_published.PUBLISHED}
    assert len(values) == len(paper_published.PUBLISHED)
    assert values["zforcing-kla-aux", "timit", "elbo_nats"] == 70_469
    assert values["zforcing-aux", "blizzard", "elbo_nats"] == 15_430
    assert values["zforcing-aux", "mnist", "nll_nats"] == 80.09
    assert values["alpha-0.005", "imdb", "iwae_perplexity"] == 58.83
    corrected = values["Z-Forcing + kla, aux, over 1,680", "timit", "elbo_nats"]
    assert corrected == pytest.approx(70_469 * 1696 / 1680, rel=1e-4)


def test_table_1_of_images_and_kept_evaluations(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, page = made("table1", tmp_path, runs["image"], runs["image-aux"])
    ours = {line["row"]: line for line in lines if line["metric"] == "nll_nats" and line["origin"] == "ours"}
    assert {key: line["relation"] for key, line in ours.items()} == {"zforcing": "<=", "zforcing-aux": "<="}
    assert cells(page)["Z-Forcing + aux"][-1].startswith("\u2264 80.09")
    assert capsys.readouterr().out.count("evaluating") == 2
    assert made("table1", tmp_path, runs["image"], runs["image-aux"]) == (lines, page)
    assert "evaluating" not in capsys.readouterr().out


def test_table_2(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [runs[f"words-{w:g}"] for w in paper_rows.WEIGHTS]
    lines, page = made("table2", tmp_path, *folders, argv=("--num-samples", "3"))
    ours = {(line["row"], line["metric"]): float(line["value"]) for line in lines if line["origin"] == "ours"}
    for weight in paper_rows.WEIGHTS:
        for split in ("", "valid/"):
            assert (
                ours[f"alpha-{weight:g}", f"{split}iwae_perplexity"] < ours[f"alpha-{weight:g}", f"{split}perplexity"]
            )
    row = cells(page)["\u03b1 = \u03b2 = 0.005"]
    assert [cell.split("\u2020")[0] for cell in row[-5:]] == [
        "\u2264 65.03", "\u2264 58.13", "\u2264 65.84", "\u2264 58.83", "9.82"
    ]  # fmt: skip


def test_table_3(runs: dict[str, Path], tmp_path: Path) -> None:
    lines, page = made("table3", tmp_path, runs["words-0"], runs["words-0.005"])
    assert f"`{runs['words-0.005']}` at update 100: posterior samples" in page, "the run whose latents tell the most"
    told = "`words-0.005` 0.800 (ELBO -8.0, update 20), `words-0` 0.600 (ELBO -8.0, update 20)"
    assert f"nats per word: {told}; the largest" in page
    assert [line["weight"] for line in lines] == [f"{i / 10:.1f}" for i in range(11)]
    assert all(set(line["greedy"].split()) <= set(models.WORDS) for line in lines)
    assert page.count("\n> ") == 2


def test_figure_2(runs: dict[str, Path], tmp_path: Path) -> None:
    lines, page = made("figure2", tmp_path, *(runs[name] for name in ("rnn", "plain", "both")))
    assert [(line["row"], line["step"]) for line in lines] == [
        ("zforcing", "10"), ("zforcing", "20"), ("zforcing-kla-aux", "10"), ("zforcing-kla-aux", "20"),
    ]  # fmt: skip
    assert image.imread(tmp_path / "figure2.png").std() > 0.02
    assert "figure2.png" in page and "| Z-Forcing + kla, aux | `both` | 1234 | 20 | 0.5000 | -9.0 |" in page


def test_figure_2_of_runs_that_differ_in_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    twin = shutil.copytree(runs["plain"], tmp_path / "twin")
    lines, page = made("figure2", tmp_path / "out", runs["plain"], twin)
    assert [Path(line["run"]).name for line in lines] == ["plain", "plain", "twin", "twin"]
    assert page.count("| Z-Forcing | `") == 2 and "KL, nats per frame" in page


@pytest.mark.parametrize("table", ["table1", "table2", "figure2", "beyond"])
def test_every_row_is_found_again_from_its_config(table: str) -> None:
    base = RECIPES["demo"]()
    if table == "table2":
        base = base.with_values({"model.density": "categorical", "model.embed_dim": 8})
    rows = paper_rows.rows(table, base, alpha=0.01)
    assert [paper_rows.key_of(table, base.with_values(row.values)) for row in rows] == [row.key for row in rows]
    published = {p.row for p in paper_published.PUBLISHED if p.table == table and p.data_set in ("timit", "imdb")}
    assert published & {row.key for row in rows} == {row.key for row in rows} - {"storn"} or table in (
        "figure2",
        "beyond",
    )


def weighed(config: Config, x_dim: int) -> int:
    """Return the number of parameters that have weight in the objective."""
    counts = systems.parameter_counts(systems.build(config.model, x_dim, seed=0))
    return counts["total"] - sum(counts[head] for head in systems.idle_heads(config.model, config.loss))


@pytest.mark.parametrize("table", ["table1", "beyond"])
def test_trials_have_equal_size_and_all_names(table: str) -> None:
    base = Config().with_values({"model.hidden": 64, "model.mlp_dim": 32, "model.z_dim": 8})
    rows = paper_rows.rows(table, base, alpha=0.01)
    points = paper_rows.points(base, rows, seeds=2, x_dim=20, budget=None)
    assert len(points) == 2 * len(rows) and len({tuple(point) for point in points}) == 1
    sizes = [weighed(base.with_values(point), 20) for point in points]
    assert max(sizes) / min(sizes) < 1.04
    assert {point["train.seed"] for point in points} == {1234, 1235}
    (first, *_) = paper_rows.points(base, rows, seeds=1, x_dim=20, budget=0)
    assert "model.hidden" not in first


def test_samples_of_a_question_default_to_the_papers() -> None:
    assert Importance().samples == 25


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("table1",), "give --name to train the table's rows, or --runs"),
        (("table1", "--name", "x", "--runs", "{plain}"), "give --name to train the table's rows, or --runs"),
        (("table1", "--runs", "{plain}"), "--runs: needs --out"),
        (("table1", "--name", "../x"), "--name '../x': must be letters"),
        (("table1", "--name", "x", "--seeds", "0"), "--seeds 0: must be 1 or more"),
        (("table1", "--name", "x", "--recipe", "nope"), "--recipe nope: there are demo"),
        (("table1", "--name", "x", "--train.steps", "0"), "--train.steps = 0: must be 1 to"),
        (("table1", "--name", "x", "--data.root", "nowhere"), "nowhere: no manifest.json"),
        (("table1", "--name", "x", "--data.root", "{bits}"), "holds bits"),
        (("table1", "--runs", "{nowhere}", "--out", "{out}"), "neither a run"),
        (("table1", "--runs", "{plain}", "{image}", "--out", "{out}"), "of different kinds of data"),
        (("table2", "--runs", "{plain}", "--out", "{out}"), "belongs to no row of table2"),
        (("table3", "--runs", "{plain}", "--out", "{out}"), "table3 mixes sentences"),
        (("figure2", "--runs", "{plain}", "{image}", "--out", "{out}"), "figure2: the runs are of different data"),
        (("figure2", "--runs", "{rnn}", "--out", "{out}"), "none of the runs is of zforcing"),
        (("table1", "--runs", "{plain}", "--out", "{out}", "--train.steps", "5"), "nothing is trained with --runs"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], sentence: str
) -> None:
    places = runs | {"out": tmp_path / "out", "nowhere": tmp_path, "bits": runs["plain"].parent.parent / BITS.name}
    code = paper.main([word.format(**places) for word in argv])
    error = capsys.readouterr().err
    assert code in (1, 2) and error.startswith("error: ") and error.count("\n") == 1 and sentence in error, error
