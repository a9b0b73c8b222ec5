"""jobs.paper trains what a table needs as a sweep, once."""

from pathlib import Path

import commands
import pytest

from cluster.sweep.record import prepare_list
from zfdist import run_protocol
from zfdist.config import Config, ConfigError


def flags(store: Path) -> list[str]:
    values = {
        "data.root": str(store), "data.frame-samples": "20", "data.segment-frames": "10", "data.window-batches": "2",
        "train.steps": "20", "train.validate-every": "10", "train.log-every": "5", "checkpoint.every-steps": "20",
        "model.hidden": "12", "model.mlp-dim": "12", "model.z-dim": "3",
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.mark.drill
def test_a_figure_from_nothing_and_again(cluster: str, store: Path, tmp_path: Path) -> None:
    words = ["figure2", "--name", "f", *flags(store)]
    code, out = commands.run("paper", *words, folder=tmp_path)
    assert code == 0, out
    folder = tmp_path / "runs" / "f"
    assert {path.name for path in (folder / "figure2").iterdir()} == {"figure2.png", "figure2.csv", "figure2.md"}
    trials = sorted((folder / "trials").iterdir())
    assert len(trials) == 4
    before = [list(run_protocol.records(trial)) for trial in trials]

    code, out = commands.run("paper", *words, folder=tmp_path)
    assert code == 0 and "Ray" not in out, out
    assert [list(run_protocol.records(trial)) for trial in trials] == before

    code, out = commands.run("paper", *words, "--train.steps", "30", folder=tmp_path)
    assert code == 1 and "is another sweep: train.steps was 20 and now is 30" in out and "Traceback" not in out, out


def test_a_list_of_trials_is_remembered(tmp_path: Path) -> None:
    points = [{"loss.alpha": 0.0, "model.system": "rnn"}, {"loss.alpha": 0.1, "model.system": "zforcing"}]
    record = prepare_list(tmp_path, Config(), points)
    record.write(tmp_path)
    assert [(trial.id, trial.values) for trial in record.trials] == [("000", points[0]), ("001", points[1])]
    assert prepare_list(tmp_path, Config(), points) == record
    with pytest.raises(ConfigError, match=r"loss\.alpha of trial 001 was 0\.1 and now is 0\.2"):
        prepare_list(tmp_path, Config(), [points[0], points[1] | {"loss.alpha": 0.2}])
    with pytest.raises(ConfigError, match=r"model\.system = 'gru'"):
        prepare_list(tmp_path / "x", Config(), [{"model.system": "gru"}])
