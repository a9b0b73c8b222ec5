"""`zfdist sweep` before anything starts: its plan, and a sentence for each mistake."""

import json
from pathlib import Path

import harness
import pytest

from cluster.sweep import stopping
from cluster.sweep.record import prepare
from cluster.sweep.search_space import Space
from jobs import sweep
from jobs.cli import sweep_options
from jobs.cli.sweep_space import seconds
from zfdist.config import ConfigError

MISTAKES = [
    (["--metric", "valid/elbo"], "--metric valid/elbo: no validation writes it; perhaps you meant 'valid/elbo_nats'"),
    (["--metric", "valid/kl_nats", "--metric", "valid/kl_nats:min"], "--metric valid/kl_nats: is given twice"),
    (["--require", "valid/kl_nats"], "--require 'valid/kl_nats': must be METRIC>=NUMBER"),
    (["--grid", "loss.kl.start=0.1,2"], "loss.kl.start = 2.0: must be 0 to 1"),
    (["--uniform", "loss.kl.start=0,2", "--search", "optuna"], "loss.kl.start = 2.0: must be 0 to 1"),
    (
        ["--grid", "loss.kl.period-steps=9,99"],
        "period_steps says something only where loss.kl.kind is cyclical",
    ),
    (["--grid", "loss.alpha=0,1", "--only-where", "loss.alpha"], "must be 'NAME if OTHER=VALUE,...'"),
    (["--only-where", "loss.alpha if loss.beta=0"], "--only-where: give the space too"),
    (["--from-sweep", "runs/none"], "random samples learn from nothing; add --search optuna"),
    (["--time-budget", "2 hours"], "--time-budget 2 hours: must be a time such as 2h"),
    (["--confirm", "3"], "--confirm 3: must be TRIALSxSEEDS with at least 2 seeds"),
    (["--confirm", "3x1"], "--confirm 3x1: must be TRIALSxSEEDS with at least 2 seeds"),
    (["--scheduler", "pbt", "--uniform", "model.hidden=4,8"], "model.hidden cannot change while a run is trained"),
    (["--scheduler", "pbt", "--interval-steps", "1200"], "--interval-steps 1200: must be below train.steps = 1200"),
    (["--scheduler", "pbt", "--population", "3"], "--population 3: must be 4 or more"),
    (["--scheduler", "pbt", "--confirm", "2x2"], "leave --search and --confirm out"),
    (["--scheduler", "pbt", "--require", "valid/kl_nats>=1"], "give one --metric, and no --require"),
    (
        ["--scheduler", "pbt", "--metric", "valid/elbo_nats", "--metric", "valid/kl_nats"],
        "give one --metric, and no --require",
    ),
    (["--retries", "-1"], "--retries -1: must be 0 or more"),
    (["--samples", "0", "--search", "optuna", "--choice", "loss.alpha=0,1"], "nothing to try: give --samples"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["demo", "--name", "x", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


def test_the_plan_says_how_many_why_and_how_long_and_starts_nothing(
    store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = harness.tiny_config(store)
    flags = [w for name, value in config.flat().items() for w in (f"--{name.replace('_', '-')}", str(value))]
    words = ["demo", "--name", "s", *flags, "--samples", "6", "--dry-run"]
    assert sweep.main(words) == 0
    said = capsys.readouterr().out
    assert "8 combinations of the grid (2 x 2 x 2)" in said and "each is trained once" in said
    assert "loss.kl.start is varied only where loss.kl.kind is linear or cyclical" in said
    assert "how long is not known" in said and not list(tmp_path.iterdir())

    harness.copied(trained, tmp_path / "runs/before")
    assert sweep.main(words) == 0
    assert "of a step in runs/before" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["before"]

    prepare(tmp_path / "runs/s", config, Space(grid={"loss.alpha": (0.0,)}), samples=0, seed=0).write(Path("runs/s"))
    assert sweep.main(words) == 1
    assert "runs/s is another sweep" in capsys.readouterr().err
    asked = [*words, "--search", "optuna", "--name", "t", "--from-sweep"]
    assert sweep.main([*asked, "runs/none"]) == 1
    assert "--from-sweep runs/none: is no sweep" in capsys.readouterr().err


def test_flags_of_the_first_releases_go_on_working() -> None:
    old = ["demo", "--no-asha", "--max-concurrent", "2", "--max-concurrent=3", "--grid", "x=--no-asha"]
    new = ["demo", "--scheduler", "none", "--trials-at-once", "2", "--trials-at-once=3", "--grid", "x=--no-asha"]
    assert sweep_options.renewed(old) == new


def test_the_plan_of_a_population(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--name", "p", "--data.root", str(store), "--train.steps", "90", "--data.frame-samples", "20"]
    assert sweep.main([*words, "--scheduler", "pbt", "--interval-steps", "40", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "a population, 8 runs of 90 steps in 3 generations" in said and "exchanges at 40, 80" in said
    assert sweep.main([*words, "--from-schedule", "runs/none", "--dry-run"]) == 1
    assert "--from-schedule runs/none: holds no schedule.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_another_sweep_found_is_learned_from_if_it_is_of_the_same_config(
    store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = harness.tiny_config(store)
    harness.copied(trained, tmp_path / "runs/old/trials/000")
    flags = [w for name, value in config.flat().items() for w in (f"--{name.replace('_', '-')}", str(value))]
    words = ["demo", "--name", "s", *flags, "--samples", "6", "--dry-run", "--search", "optuna"]
    words += ["--from-sweep", "runs/old", "--uniform", "loss.alpha=0,1"]
    assert sweep.main(words) == 0
    assert "beginning with 1 trial of another sweep" in capsys.readouterr().out
    assert sweep.main([*words, "--model.z-dim", "5"]) == 1
    assert "none of its 1 trials can be learned from: model.z_dim is 4" in capsys.readouterr().err


def test_a_trial_is_stopped_by_name_also_before_it_began(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["stop", "s", "000"]) == 1
    assert "runs/s: is no sweep" in capsys.readouterr().err
    space = Space(grid={"loss.alpha": (0.0, 0.1)})
    prepare(Path("runs/s"), harness.tiny_config(store), space, samples=0, seed=0).write(Path("runs/s"))
    assert sweep.main(["stop", "s", "001"]) == 0
    assert json.loads(Path("runs/s/trials/001/result.json").read_text())["state"] == "stopped"
    assert sweep.main(["stop", "s", "001"]) == 0 and "is over already: stopped" in capsys.readouterr().out
    assert sweep.main(["stop", "s", "../x"]) == 1 and "has no trial '../x'" in capsys.readouterr().err


def test_a_stop_of_all_is_for_the_part_that_runs_also_one_that_begins_later(tmp_path: Path) -> None:
    part, shown = tmp_path / "generations/01", list[int]()
    part.mkdir(parents=True)
    (tmp_path / "sweep.json").write_text("{}")
    show = stopping.passing_on(tmp_path, part, lambda rows: shown.append(len(rows)))
    show([])
    assert not (part / "stop").exists()
    stopping.stop_sweep(str(tmp_path))
    (part / "stop").unlink(missing_ok=True)  # as a part does that begins just now
    show([])
    assert (part / "stop").exists() and shown == [0, 0]
    with pytest.raises(stopping.StopError, match="is a population, whose members go on from each other"):
        stopping.stop_trial(str(tmp_path), "001")


def test_times() -> None:
    assert [seconds("--t", text) for text in ("90s", "1h30m", "2h", "0.5d")] == [90, 5400, 7200, 43200]
    for text in ("", "2", "h", "2h x", "0s", "-2h"):
        with pytest.raises(ConfigError, match="must be a time"):
            seconds("--t", text)
