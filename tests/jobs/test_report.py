"""python -m jobs.report end to end: the page, its links, tables, figures and sounds."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import harness
import models
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import evaluate, report
from jobs.reporting import figures, run_history, show
from zfdist import train, world
from zfdist.data.kinds import BITS, TOKENS
from zfdist.data.store import Store

HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `plain` (alpha 0, KL weight 1) and `aux` (alpha 0.5, annealed) of 8 steps; tests only read them."""
    world.connect()
    folder = tmp_path_factory.mktemp("runs")
    plain = {"loss__alpha": 0.0, "loss__beta": 0.0, "loss__kl__kind": "constant"}
    for name, values in {"plain": plain, "aux": {"loss__alpha": 0.5}}.items():
        config = harness.tiny_config(store, train__log_every=1, **values)
        train.train(config, folder / name, HERE, harness.Recorder())
    return folder


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on both runs."""
    out = tmp_path_factory.mktemp("report") / "new"
    assert report.main([str(runs / "plain"), str(runs / "aux"), "--out", str(out), "--title", "Two runs"]) == 0
    return out


@pytest.fixture(scope="module")
def others(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a few steps: `words` and `words-rnn` on labelled sentences, `digits` on images; tests only read them."""
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


def make_sweep(folder: Path, runs: Path, count: int) -> Path:
    """A sweep folder of `count` trials over alpha and KL schedule, with invented, spread-out validations."""
    source = (runs / "aux/metrics.jsonl").read_text().splitlines()
    for i in range(count):
        trial = folder / "trials" / f"{i:03}"
        shutil.copytree(runs / "aux", trial)
        config = json.loads((trial / "config.json").read_text())
        config["loss"]["alpha"] = (0.0, 0.005, 0.05)[i % 3]
        config["loss"]["kl"]["kind"] = ("linear", "constant")[i % 2]
        (trial / "config.json").write_text(json.dumps(config))
        records = [json.loads(line) for line in source]
        for record in records:
            if "valid/elbo_nats" in record:
                record["valid/elbo_nats"] += 10 * ((7 * i) % count)
        (trial / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "trials/000/result.json").write_text(json.dumps({"state": "stopped", "step": 8}))
    (folder / "trials/001/result.json").unlink()
    return folder


def table_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = page.split(f"## {heading}\n", 1)[1].splitlines()
    rows = [line for line in lines[: lines.index("", 3 + next(i for i, x in enumerate(lines) if x[:1] == "|"))] if line]
    return [[cell.strip(" *`") for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")][2:]


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_all_links_lead_to_files_of_the_report(written: Path) -> None:
    page = (written / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert page.startswith("# Two runs\n")
    assert {str(p.relative_to(written)) for p in written.rglob("*.*")} == {*links, "report.md"}
    assert sum(link.endswith(".png") for link in links) == 4 and sum(link.endswith(".wav") for link in links) == 4


def test_figures_have_print_resolution(written: Path) -> None:
    for path in (written / "figures").iterdir():
        width, height = png_size(path)
        assert width > 1000 and height > 500, path


def test_the_bound_is_what_evaluate_says(runs: Path, written: Path, tmp_path: Path) -> None:
    page = (written / "report.md").read_text()
    best = table_after(page, "All runs")[0][0]
    evaluate.main([str(runs / best), "--json", str(tmp_path / "best.json")])
    got = json.loads((tmp_path / "best.json").read_text())
    bound = {row[0]: row[1] for row in table_after(page, "The bound")}
    assert bound["ELBO per sequence"].startswith(f"{got['elbo_nats']:,.2f} nats")
    assert bound["KL per frame"] == f"{got['kl_nats_per_frame']:.4f} nats"
    assert (bound["sequences"], bound["split"]) == ("6", "test")


def test_sounds(written: Path, store: Path) -> None:
    opened = Store.open(store)
    original, rate = soundfile.read(written / "samples/original.wav", dtype="int16")
    assert rate == opened.sample_rate and len(original) % harness.FRAME == 0
    name = re.findall(r"original\.wav\) \| `([^`]+)` of the test split", (written / "report.md").read_text())[0]
    recording = opened.names("test").index(name)
    recorded = opened.gather("test", np.array([recording]), np.array([harness.FRAME]), len(original))[0]
    assert np.array_equal(original, recorded), "the original is not as recorded"
    assert len(original) == int(opened.lengths("test").max()) // harness.FRAME * harness.FRAME - harness.FRAME
    for name in ("reconstruction", "sample", "sample-means"):
        info = soundfile.info(written / f"samples/{name}.wav")
        assert (info.samplerate, info.frames, info.subtype, info.channels) == (rate, len(original), "PCM_16", 1)
        wave, _ = soundfile.read(written / f"samples/{name}.wav", dtype="int16")
        assert np.ptp(wave) > 100, f"{name} is silent"


def test_how_to_do_it_again(runs: Path, written: Path, store: Path) -> None:
    from jobs.recipes import RECIPES
    from zfdist.config import Config, parse_value

    page = (written / "report.md").read_text()
    best = table_after(page, "All runs")[0][0]
    recipe = re.findall(r"python -m jobs.train (\w+) --name", page)[0]
    flags = {
        name.replace("-", "_"): parse_value(name.replace("-", "_"), value)
        for name, value in re.findall(r"--([a-z0-9-]+\.[a-z0-9.-]+) (\S+)", page)
    }
    again = RECIPES[recipe]().with_values(flags)
    assert again == Config.from_json((runs / best / "config.json").read_text())
    assert Store.open(store).fingerprint in page and f"| version of torch | {torch.__version__} |" in page


def test_sweep_is_sorted_and_says_how_trials_ended(runs: Path, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", runs, 12)
    path = report.write([sweep], tmp_path / "out", title="Sweep", samples=False, say=lambda line: None)
    rows = table_after(path.read_text(), "All runs")
    elbos = [float(row[-2].replace(",", "")) for row in rows]
    assert len(rows) == 12 and elbos == sorted(elbos, reverse=True)
    by_name = {row[0]: row for row in rows}
    assert (by_name["000"][1], by_name["005"][1], by_name["001"][2]) == ("0", "0.05", "always 1")
    assert [by_name[name][3] for name in ("000", "001", "002")] == ["stopped", "unfinished", "finished"]
    assert (tmp_path / "out/figures/sweep.png").is_file() and not (tmp_path / "out/samples").exists()


def test_labels_stay_apart(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves that end at the same height get labels one below the other, all beside the axes."""
    heights = []

    class Axes:
        def get_ylim(self) -> tuple[float, float]:
            return 0.0, 1.0

        def annotate(self, label: str, at: Any, place: tuple[float, float], **style: Any) -> None:
            heights.append(place[1])

    for ends in ([0.5] * 6, [0.0, 0.01, 0.02, 0.9], [1.0] * 6, [-5.0, 7.0]):
        heights.clear()
        figures._label_ends(Axes(), [(10, value, "label", "black") for value in ends])
        assert min(np.diff(heights[::-1]), default=1) > 0.07 and min(heights) > 0 and max(heights) <= 1


def test_many_values_are_placed_by_logarithm() -> None:
    scale = figures._Scale([0.0, 0.0002, 0.001, 0.003, 0.01, 0.04, 0.2, 0.5])
    places, names = scale.ticks()
    assert names == ["0", "0.0001", "0.001", "0.01", "0.1", "1"] and places == [-5, -4, -3, -2, -1, 0]
    assert places[0] < scale.of(0.0002) < scale.of(0.5) < 0


def test_one_run_without_checkpoint_or_validation(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs / "aux", tmp_path / "young")
    shutil.rmtree(copy / "checkpoints")
    kept = [line for line in (copy / "metrics.jsonl").read_text().splitlines() if "valid/" not in line]
    (copy / "metrics.jsonl").write_text("\n".join(kept[:2]) + "\n")
    page = report.write([copy], tmp_path / "out", title="Young", say=lambda line: None).read_text()
    assert "none was validated yet" in page and "young: holds no finished checkpoint" in page


def test_data_that_is_elsewhere_is_said_on_the_page(runs: Path, store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs / "aux", tmp_path / "aux")
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        manifest.write_text(manifest.read_text().replace(str(store), str(tmp_path / "gone")))
    page = report.write([copy], tmp_path / "out", title="Moved", say=lambda line: None).read_text()
    assert f"Not evaluated: {tmp_path / 'gone'}: no manifest.json" in page and "parameters" in page


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("{tmp}/none", "--out", "{tmp}/out"), "{tmp}/none: neither a run (no config.json) nor a sweep"),
        (("--out", "{tmp}/out"), "name at least one run"),
        (("{runs}/aux", "--out", "/dev/null/x"), "/dev/null"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main([word.format(tmp=tmp_path, runs=runs) for word in argv])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence.format(tmp=tmp_path) in error


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


def test_runs_on_different_data_are_apart_and_none_is_the_best(runs: Path, others: Path, tmp_path: Path) -> None:
    other_frames = shutil.copytree(runs / "aux", tmp_path / "longer")
    config = json.loads((other_frames / "config.json").read_text())
    config["data"]["frame_samples"] = 40
    (other_frames / "config.json").write_text(json.dumps(config))
    folders = [runs / "plain", runs / "aux", others / "words-rnn", other_frames]
    out = tmp_path / "out"
    page = report.write(folders, out, samples=False, say=lambda line: None).read_text()
    assert "4 runs on 3 data sets" in page and "no run here is the best of all" in page
    parts = re.split(r"\n## ", page)[1:]
    named = {tuple(sorted(set(re.findall(r"`(plain|aux|words-rnn|longer)`", part)))) for part in parts}
    assert named == {("aux", "plain"), ("words-rnn",), ("longer",)}
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
    assert figures._Numbers().format_ticks(values) == texts


@given(st.integers(-10_000, 10_000), st.sampled_from([1e-4, 0.005, 0.25, 0.5, 1.5, 2, 2.5, 500]), st.integers(2, 8))
def test_no_two_ticks_read_the_same(first: int, step: float, count: int) -> None:
    texts = figures._Numbers().format_ticks([(first + i) * step for i in range(count)])
    assert len(set(texts)) == count
    for i, text in enumerate(texts):
        assert float(text.replace("\u2212", "-").replace(",", "")) == pytest.approx((first + i) * step, abs=step / 100)


def test_far_rows_are_chosen() -> None:
    rows = np.array([[0, 0], [0, 0.1], [9, 9], [0, 9]], np.float32)
    assert show._far_apart(rows, 3) == [0, 2, 3] and show._far_apart(rows[:2], 5) == [0, 1]


def test_the_same_run_given_twice_counts_once(runs: Path) -> None:
    assert [h.name for h in run_history.read([runs / "aux", runs / "../" / runs.name / "aux"])] == ["aux"]
