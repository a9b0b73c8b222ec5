"""zfdist evaluate, baselines and compare together: words, digits and sound, checked from the files by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import harness
import models
import numpy as np
import pytest

from jobs import baselines, compare, evaluate
from zfdist.data.kinds import BITS, TOKENS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind of data two untrained runs of different sizes, and for words one more seed of the first."""
    root = tmp_path_factory.mktemp("compare")
    for name, store in (
        ("words", models.make_store(root / "data/words", TOKENS)),
        ("digits", models.make_store(root / "data/digits", BITS)),
        ("sound", harness.make_store(root / "data/sound")),
    ):
        models.save(root / f"{name}-a", models.config_for(store, train__seed=1))
        models.save(root / f"{name}-b", models.config_for(store, model__hidden=5, train__seed=1))
    models.save(root / "words-c", models.config_for(root / "data/words", train__seed=2))
    return root


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def kept(run: Path) -> list[dict[str, str]]:
    (path,) = (run / "scores").glob("test-step-00000100-*.csv")
    return read(path)


@pytest.mark.parametrize("kind", ["words", "digits", "sound"])
def test_a_comparison_is_what_the_files_give_by_hand(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    one, two = runs / f"{kind}-a", runs / f"{kind}-b"
    assert evaluate.main([str(one), "--json", str(tmp_path / "one.json")]) == 0
    result = json.loads((tmp_path / "one.json").read_text())
    assert Path(result["scores"]).parent == one / "scores"
    capsys.readouterr()
    assert compare.main([str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"evaluating {kind}-b" in out and f"evaluating {kind}-a" not in out, "the first was evaluated before"
    rows, others = kept(one), kept(two)
    assert [row["id"] for row in rows] == [row["id"] for row in others]
    a, b = (np.array([float(row["elbo_nats"]) for row in table]) for table in (rows, others))
    assert result["elbo_nats"] == pytest.approx(a.mean())
    assert all(float(r["elbo_nats"]) == pytest.approx(float(r["log_px_nats"]) - float(r["kl_nats"])) for r in rows)
    sign = 1 if a.mean() > b.mean() else -1
    (pair,) = read(tmp_path / "out/compare.csv")
    assert float(pair["mean_nats"]) == pytest.approx(sign * (a - b).mean())
    assert float(pair["stderr_nats"]) == pytest.approx((a - b).std(ddof=1) / math.sqrt(len(a)))
    assert (tmp_path / "out/compare.png").stat().st_size > 1000
    page = (tmp_path / "out/compare.md").read_text()
    assert f"| {-sign * (a - b).mean():,.2f} \u00b1 " in page and f"{a.mean():,.2f} \u00b1" in page


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("words", ["unigram", "kneser-ney-trigram"]),
        ("digits", ["product-of-bernoullis", "mixture-of-bernoullis"]),
        ("sound", ["frame-gaussian", "ar-16"]),
    ],
)
def test_baselines_compare_with_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, names: list[str]
) -> None:
    run = runs / f"{kind}-a"
    assert baselines.main([str(run), "--out", str(tmp_path)]) == 0
    files = sorted(tmp_path.glob("*.csv"))
    assert len(files) == 2
    capsys.readouterr()
    assert compare.main([str(run), *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in names) and "lower bounds, and may lie higher" in out


def test_seeds_count_as_one_and_what_does_not_compare_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = [runs / f"words-{name}" for name in "abc"]
    assert compare.main([*map(str, words), "--bound", "iwae", "--num-samples", "3"]) == 0
    out = capsys.readouterr().out
    assert "words-a and 1 more seed" in out and "IWAE, nats per sentence" in out
    for argv, sentence in (
        ([words[0], runs / "digits-a"], "error: words-a and digits-a do not compare: different data"),
        ([words[0], words[0]], "is named twice"),
        ([words[0]], "name two runs or more"),
        ([words[0], runs / "nobody"], "no such run"),
        ([words[0], runs / "nobody.csv"], "no such file of scores"),
    ):
        assert compare.main([str(word) for word in argv]) in (1, 2)
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ") and sentence in error
