"""Folders of this machine are no URIs: their names may have whatever a file system takes."""

from pathlib import Path

import harness
import pytest

from jobs import evaluate
from jobs.cli import command
from zfdist import train, world


@pytest.mark.parametrize("name", ["a?b=c&d", "50% #1", "~", "~root", "x[1]*", "région de Zürich", "a:b"])
def test_a_run_is_trained_gone_on_with_and_evaluated(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = harness.copied(store, tmp_path / name / "data")
    run = Path(command.run_place(str(tmp_path / name), "run"))
    assert run == tmp_path / name / "run" and command.shown(str(run)) == str(run)
    config = harness.tiny_config(data, train__steps=4)
    assert train.train(config, run, world.connect(), harness.Recorder(2)) == ("stopped", 2)
    assert train.train(config, run, world.connect(), harness.Recorder()) == ("finished", 4)
    assert evaluate.main([str(run), "--json", str(tmp_path / name / "e.json")]) == 0
    assert (tmp_path / name / "e.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    assert "nats" in capsys.readouterr().out


def test_options_stay_behind_the_name_in_a_store() -> None:
    assert command.run_place("s3://bucket/runs/?region=here", "x") == "s3://bucket/runs/x?region=here"
    assert command.shown("s3://bucket/runs/x?region=here") == "s3://bucket/runs/x"
