"""zfdist report end to end: the page, its links, tables, figures and sounds."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import soundfile
import torch
from pages import png_size, table_after

from jobs import evaluate, report
from jobs.reporting import axes, run_history
from zfdist import train, world
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


def test_all_links_lead_to_files_of_the_report(written: Path) -> None:
    page = (written / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert page.startswith("# Two runs\n")
    assert {str(p.relative_to(written)) for p in written.rglob("*.*")} == {*links, "report.md", "report.html"}
    assert sum(link.endswith(".png") for link in links) == 7 and sum(link.endswith(".wav") for link in links) == 4


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
    from zfdist.config import Config, parse_value
    from zfdist.recipes import RECIPES

    page = (written / "report.md").read_text()
    best = table_after(page, "All runs")[0][0]
    recipe = re.findall(r"zfdist train (\w+) --name", page)[0]
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
        axes.label_ends(Axes(), [(10, value, "label", "black") for value in ends])
        assert min(np.diff(heights[::-1]), default=1) > 0.07 and min(heights) > 0 and max(heights) <= 1


def test_many_values_are_placed_by_logarithm() -> None:
    scale = axes.Scale([0.0, 0.0002, 0.001, 0.003, 0.01, 0.04, 0.2, 0.5])
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
    assert report.main([word.format(tmp=tmp_path, runs=runs) for word in argv]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence.format(tmp=tmp_path) in error


def test_the_same_run_given_twice_counts_once(runs: Path) -> None:
    assert [h.name for h in run_history.read([runs / "aux", runs / "../" / runs.name / "aux"])] == ["aux"]
