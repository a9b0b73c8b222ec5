"""zfdist report of words, of digits, and of runs on several data sets; and the ticks of its figures."""

import json
import re
import shutil
from pathlib import Path

import harness
import models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import png_size, table_after

from jobs import report
from jobs.reporting import axes, show
from zfdist import train, world
from zfdist.data.kinds import BITS, TOKENS
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard
from zfdist.evaluation.evaluate import load_model

HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a few steps: `words` and `words-rnn` on labelled sentences, `digits` on images; tests only read them."""
    world.connect()
    folder = tmp_path_factory.mktemp("others")
    words = {"data__root": str(models.make_store(folder / "sentences", TOKENS)), "train__steps": 3}
    digits = {"data__root": str(models.make_store(folder / "images", BITS)), "train__steps": 1}
    short = {"data__global_batch": 3, "train__log_every": 1, "train__validate_every": 1}
    for name, values in {
        "words": words,
        "words-rnn": words | {"model__system": "rnn"},
        "digits": digits | {"loss__kl__kind": "constant"},
    }.items():
        config = models.config_for(Path(str(values.pop("data__root"))), **short, **values)
        train.train(config, folder / name, HERE, harness.Recorder())
        words["data__root"] = str(folder / "sentences")
    return folder


def test_words(others: Path, tmp_path: Path) -> None:
    """An RNN beside Z-Forcing: exact beside a bound, a KL term for one, sentences of both."""
    out = tmp_path / "out"
    page = report.write([others / "words", others / "words-rnn"], out, say=lambda line: None).read_text()
    assert {"# Z-Forcing and RNN on sentences", "# RNN and Z-Forcing on sentences"} & set(page.splitlines())
    columns = {row[0]: row for row in table_after(page, "All runs")}
    assert columns["words-rnn"][-1] == "" and float(columns["words"][-1]) >= 0, "KL where there is one"
    assert float(columns["words-rnn"][-3]) > 1, "a perplexity"
    exact, bound = (
        page.split(f"**{name}**: ")[1].split("\n\n**")[0].split("\n## ")[0] for name in ("RNN", "Z-Forcing")
    )
    assert "The likelihood is exact" in exact and "log-likelihood per word" in exact and "KL" not in exact
    assert re.search(r"perplexity per word \| [\d.]+ \(standard error [\d.]+\)", exact), exact
    assert "perplexity per word at most" in bound and "KL per word" in bound
    assert "16 words are known" in page and "| test | 6 | " in page
    assert "nats per sentence" in page and "sample, " not in page and "normalised" not in page
    written = {str(p.relative_to(out / "samples")) for p in out.glob("samples/*/*/*")}
    assert written == {
        *(
            f"zforcing/{what}/sentences.txt"
            for what in ("samples", "continuations", "reconstructions", "interpolation")
        ),
        *(f"rnn/{what}/sentences.txt" for what in ("samples", "continuations")),
    }
    for path in out.glob("samples/*/*/*"):
        lines = path.read_text().splitlines()
        assert path.read_text() in page and len(lines) >= 8
        assert all(set(line[14:].split()) <= set(models.WORDS) for line in lines)
    assert (out / "figures/kl.png").is_file() and not (out / "figures/sweep.png").exists()


def test_digits(others: Path, tmp_path: Path) -> None:
    page = report.write([others / "digits"], tmp_path / "out", say=lambda line: None).read_text()
    assert page.startswith("# Z-Forcing on binary images\n") and "nats per image" in page and "KL per pixel" in page
    assert "negative log-likelihood at most" in page and "perplexity" not in page
    grids = re.findall(r"!\[[^]]+\]\((samples/\w+/images\.png)\)", page)
    assert [grid.split("/")[1] for grid in grids] == ["samples", "reconstructions", "continuations", "interpolation"]
    for grid in grids:
        assert png_size(tmp_path / "out" / grid)[0] >= 1000


def test_runs_on_different_data_are_apart_and_none_is_the_best(trained: Path, others: Path, tmp_path: Path) -> None:
    other_frames = shutil.copytree(trained, tmp_path / "longer")
    config = json.loads((other_frames / "config.json").read_text())
    config["data"]["frame_samples"] = 40
    (other_frames / "config.json").write_text(json.dumps(config))
    folders = [trained, shutil.copytree(trained, tmp_path / "twin"), others / "words-rnn", other_frames]
    out = tmp_path / "out"
    page = report.write(folders, out, samples=False, say=lambda line: None).read_text()
    assert "4 runs on 3 data sets" in page and "no run here is the best of all" in page
    parts = re.split(r"\n## ", page)[1:]
    named = {tuple(sorted(set(re.findall(r"`(run|twin|words-rnn|longer)`", part)))) for part in parts}
    assert named == {("run", "twin"), ("words-rnn",), ("longer",)}
    assert page.count("the best is") == 1, "of the two that compare"
    words = next(part for part in parts if "words-rnn" in part)
    assert "KL" not in words.split("### How to do it again")[0], "without latents there is none"
    for link in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / link).is_file()


def test_what_cannot_be_generated_is_said_and_the_page_is_written(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "_COMPARED", 1)
    page = report.write([others / "words"], tmp_path / "out", say=lambda line: None).read_text()
    assert "> Nothing is generated: the test split has fewer than 2 sequences of 3 words or more." in page
    assert "perplexity per word at most" in page


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((-51.0, -49.5, -48.0, -46.5), ["\u221251.0", "\u221249.5", "\u221248.0", "\u221246.5"]),
        ((0.0, 12_000.0), ["0", "12,000"]),
        ((0.0, 0.015, 0.03), ["0.000", "0.015", "0.030"]),
        ((7.0,), ["7"]),
        ((), []),
    ],
)
def test_ticks_have_the_digits_that_tell_them_apart(values: tuple[float, ...], texts: list[str]) -> None:
    assert axes.Numbers().format_ticks(values) == texts


@given(st.integers(-10_000, 10_000), st.sampled_from([1e-4, 0.005, 0.25, 0.5, 1.5, 2, 2.5, 500]), st.integers(2, 8))
def test_no_two_ticks_read_the_same(first: int, step: float, count: int) -> None:
    texts = axes.Numbers().format_ticks([(first + i) * step for i in range(count)])
    assert len(set(texts)) == count
    for i, text in enumerate(texts):
        assert float(text.replace("\u2212", "-").replace(",", "")) == pytest.approx((first + i) * step, abs=step / 100)


def test_labels_are_shown_in_turn(others: Path, tmp_path: Path) -> None:
    """Of a split sorted by label, as files often are, a report shows all labels."""
    root, rows = tmp_path / "store", [[0] * 784] * 8
    tags = [0, 0, 0, 1, 1, 2, 2, 2]
    shards = {
        split: [
            write_shard(
                root,
                f"{split}-0",
                "k",
                [
                    Recording(f"{i}", np.array(row, np.uint8), tag)
                    for i, (row, tag) in enumerate(zip(rows, tags, strict=True))
                ],
                {},
                BITS,
            )
        ]
        for split in ("train", "valid", "test")
    }
    publish(root, shards, sample_rate=0, source={}, licence="", kind=BITS)
    loaded = load_model(others / "digits")
    assert show._different(loaded, Store.open(root), 5, at_least=1) == [0, 3, 5, 1, 4]


def test_far_rows_are_chosen() -> None:
    rows = np.array([[0, 0], [0, 0.1], [9, 9], [0, 9]], np.float32)
    assert show._far_apart(rows, 3) == [0, 2, 3] and show._far_apart(rows[:2], 5) == [0, 1]
