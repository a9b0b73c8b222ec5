"""zfdist evaluate on a tiny trained run: its numbers against a computation by hand, its messages."""

import dataclasses
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import models
import numpy as np
import pytest
import torch
import yaml

from jobs import evaluate
from zfdist import seeding, train, world
from zfdist.data.kinds import BITS, TOKENS, Kind
from zfdist.data.store import Store
from zfdist.evaluation.evaluate import Result, load_model

HERE = world.World(0, 1, 0, torch.device("cpu"), None)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with validated checkpoints at 4 and 8; tests only read it."""
    world.connect()
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    train.train(harness.tiny_config(store), folder, HERE, harness.Recorder())
    return folder


def evaluated(tmp_path: Path, *argv: str | Path) -> dict[str, Any]:
    """Run the job; return what it wrote as JSON."""
    assert evaluate.main([*map(str, argv), "--json", str(tmp_path / "new" / "result.json")]) == 0
    return json.loads((tmp_path / "new" / "result.json").read_text())  # type: ignore[no-any-return]


def by_hand(run: Path, store: Store, split: str, seed: int) -> dict[str, float]:
    """The bound from single, unpadded recordings: no loader, no mask, no objective."""
    model, config, *_ = load_model(run)
    elbos, px, kl, frames = [], 0.0, 0.0, 0
    for i, samples in enumerate(store.lengths(split)):
        count = int(samples) // harness.FRAME
        pcm = store.gather(split, np.array([i]), np.array([0]), count * harness.FRAME)[0].astype(np.float64)
        units = torch.tensor((pcm - store.mean) / store.std, dtype=torch.float32).view(count, 1, harness.FRAME)
        key = seeding.key(seed, "evaluate")
        eps_TBZ = seeding.normals(key, torch.tensor([i]), count - 1, config.model.z_dim)
        with torch.no_grad():
            terms = model(units[:-1], units[1:], torch.tensor([count - 1]), eps_TBZ)
        px, kl = px + float(terms.log_px_TB.double().sum()), kl + float(terms.kl_TB.double().sum())
        elbos.append(float((terms.log_px_TB.double() - terms.kl_TB.double()).sum()))
        frames += count - 1
    n, samples = len(elbos), frames * harness.FRAME
    return {
        "sequences": n,
        "frames": frames,
        "samples": samples,
        "elbo_nats": sum(elbos) / n,
        "elbo_stderr_nats": statistics.stdev(elbos) / math.sqrt(n),
        "log_px_nats": px / n,
        "kl_nats": kl / n,
        "kl_nats_per_frame": kl / frames,
        "nats_per_sample": sum(elbos) / samples,
        "bits_per_sample": sum(elbos) / samples / math.log(2),
    }


@pytest.mark.parametrize(("split", "seed"), [("test", None), ("train", 7)])
def test_numbers_are_those_of_single_sequences(
    run: Path, store: Path, tmp_path: Path, split: str, seed: int | None
) -> None:
    got = evaluated(tmp_path, run, "--split", split, *(() if seed is None else ("--seed", str(seed))))
    expected = by_hand(run, Store.open(store), split, 1234 if seed is None else seed)
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert got["seed"] == (1234 if seed is None else seed)


def test_json_has_all_that_a_comparison_needs(run: Path, store: Path, tmp_path: Path) -> None:
    got = evaluated(tmp_path, run)
    assert {field.name for field in dataclasses.fields(Result)} | {"checkpoint", "data", "scores"} == got.keys()
    opened = Store.open(store)
    assert (got["mean"], got["std"], got["sigma_floor"]) == (opened.mean, opened.std, 1e-3)
    assert (got["split"], got["view"], got["data"]) == ("test", "utterances", str(store))
    assert got["checkpoint"] == str(run / f"checkpoints/step-{got['step']:08d}")


def test_validation_split_gives_the_number_that_the_run_logged(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if "valid/elbo_nats" in line), key=lambda line: line["valid/elbo_nats"])
    got = evaluated(tmp_path, run, "--split", "valid")
    assert got["step"] == best["step"]
    assert got["elbo_nats"] == pytest.approx(best["valid/elbo_nats"], rel=1e-6)


def test_a_checkpoint_and_an_export_evaluate_alike(run: Path, tmp_path: Path) -> None:
    first = evaluated(tmp_path, run, "--export", tmp_path / "export")
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == [
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    for path in (first["checkpoint"], tmp_path / "export"):
        places = {"checkpoint": "", "scores": ""}
        assert {**evaluated(tmp_path, path), **places} == {**first, **places}
    card = (tmp_path / "export/README.md").read_text()
    data = Store.open(first["data"])
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "zfdist"
    assert f"| ELBO per sequence | {first['elbo_nats']:,.2f} nats" in card and data.fingerprint in card
    assert data.manifest.licence and f"licence of the data\n\n    {data.manifest.licence}\n" in card


def test_importance_weighted_bound_over_seeds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--bounds", "elbo,iwae", "--num-samples", "6", "--seeds", "3", "--legacy-denominator")
    got = evaluated(tmp_path, run, *flags, "--chunk", "4")
    table = capsys.readouterr().out
    assert got["iwae_nats"] > got["elbo_nats"]
    assert (got["iwae_samples"], got["num_seeds"], got["seed"], got["legacy_rows"]) == (6, 3, 1234, 32)
    assert got["legacy_elbo_nats"] == pytest.approx(got["elbo_nats"] * got["sequences"] / 32)
    single = [evaluated(tmp_path, run, *flags[:4], "--seed", str(seed)) for seed in (1234, 1235, 1236)]
    for name in ("elbo_nats", "kl_nats", "iwae_nats"):
        values = [one[name] for one in single]
        assert got[name] == pytest.approx(statistics.fmean(values), rel=1e-6)
        assert got["seed_stderr"][name] == pytest.approx(statistics.stdev(values) / 3**0.5, rel=1e-4)
    error = got["seed_stderr"]["iwae_nats"]
    assert f"{got['iwae_nats']:,.2f} \u00b1 {error:,.2f} nats (standard error {got['iwae_stderr_nats']:,.2f})" in table
    assert "IWAE-6 per sequence" in table and "ELBO, legacy denominator of 32" in table
    assert "1234 to 1236: means" in table


@pytest.mark.parametrize(
    ("kind", "named"),
    [(BITS, ("an image", "scored pixels", "KL per pixel")), (TOKENS, ("a sentence", "with </s>", "KL per word"))],
)
def test_images_and_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Kind, named: tuple[str, ...]
) -> None:
    config = models.config_for(models.make_store(tmp_path / "store", kind))
    got = evaluated(tmp_path, models.save(tmp_path / "run", config), "--bounds", "elbo,iwae", "--num-samples", "4")
    table = capsys.readouterr().out
    assert all(name in table for name in named)
    if kind == BITS:
        assert (got["nll_nats"], got["frames"]) == (-got["elbo_nats"], 6 * 784)
        assert got["iwae_nll_nats"] < got["nll_nats"] and got["perplexity"] is None
    else:
        words = int(Store.open(tmp_path / "store").lengths("test").sum())
        assert got["frames"] == words + 6, "each sentence has an end and is scored for it"
        assert got["perplexity"] == pytest.approx(math.exp(-got["elbo_nats"] * 6 / (words + 6)))
        assert got["iwae_perplexity"] < got["perplexity"] and got["nll_nats"] is None


def test_segments_and_other_data(run: Path, store: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(store, tmp_path / "moved")
    got = evaluated(tmp_path, run, "--view", "segments", "--data", moved)
    scored = [int(samples) // harness.FRAME - 1 for samples in Store.open(store).lengths("test")]
    assert (got["view"], got["data"]) == ("segments", str(moved))
    assert got["sequences"] == sum(math.ceil(frames / 10) for frames in scored)
    assert got["frames"] == sum(scored)


def test_table_is_aligned_and_says_everything(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = evaluated(tmp_path, run)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    (width,) = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in lines}
    values = [line[width:] for line in lines]
    assert f"{got['elbo_nats']:,.2f} nats (standard error {got['elbo_stderr_nats']:,.2f})" in values
    error = got["nats_per_sample_stderr"]
    per_sample = f"{got['nats_per_sample']:.5f} nats = {got['bits_per_sample']:.5f} bits"
    assert f"{per_sample} (standard error {error:.5f} nats = {error / math.log(2):.5f} bits)" in values
    for number in ("log_px_nats", "kl_nats"):
        assert f"{got[number]:,.2f} nats" in values
    for number in ("sequences", "frames", "samples", "step"):
        assert f"{got[number]:,}" in values


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("{tmp}/none",), "{tmp}/none: no such run, checkpoint or export"),
        (("{tmp}",), "{tmp}: holds no finished checkpoint"),
        (("{run}", "--split", "dev"), "split 'dev': {store} has train, valid, test"),
        (("{run}", "--data", "{tmp}"), "{tmp}: no manifest.json; run zfdist prepare"),
        (("{run}", "--data", "{other}"), "its units differ"),
        (("{run}", "--seed", "-1"), "--seed -1: must be 0 or more"),
        (("{run}", "--seeds", "0"), "--seeds 0: must be 1 or more"),
        (("{run}", "--num-samples", "0"), "--num-samples 0: must be 1 or more"),
        (("{run}", "--chunk", "0"), "--chunk 0: must be 1 or more"),
        (("{run}", "--workers", "0"), "--workers 0: must be 1 or more"),
        (("{run}", "--bounds", "fivo"), "--bounds fivo: must be elbo, or elbo,iwae"),
        (("{run}", "--address", "auto"), "--address: needs --workers"),
        (("{run}", "--json", "/dev/null/x"), "/dev/null"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], sentence: str
) -> None:
    places = {"tmp": tmp_path, "run": run, "store": store, "other": tmp_path / "other"}
    if "{other}" in argv:
        harness.make_store(tmp_path / "other", seed=3)
    assert evaluate.main([word.format(**places) for word in argv]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence.format(**places) in error


def test_damaged_weights_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for weights in copy.rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert evaluate.main([str(copy)]) == 1
    assert "model.safetensors: its content is not what was written" in capsys.readouterr().err


def test_needs_neither_ray_nor_deepspeed(run: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None; "
        f"from jobs import evaluate; sys.exit(evaluate.main([{str(run)!r}]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "ELBO per sequence" in out.stdout
