"""What comes before a run: a dry run, and the Tab key of a shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import harness
import pytest

from jobs import completion, train
from zfdist.config import Config


def arguments(config: Config, name: str, runs: Path) -> list[str]:
    """A command line for `zfdist train demo` that gives exactly this config."""
    from zfdist.recipes import demo

    usual = demo().flat()
    changed = {key: value for key, value in config.flat().items() if value != usual[key]}
    flags = [word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return ["demo", "--name", name, "--runs", str(runs), *flags]


def test_a_dry_run_says_all_and_starts_nothing(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from zfdist.evaluation.evaluate import load_model

    threads = torch.get_num_threads()
    config = harness.tiny_config(store, loss__alpha=0.25)
    assert train.main([*arguments(config, "new", tmp_path), "--dry-run", "--workers", "1:2"]) == 0
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    rows = dict(line.split(None, 1) for line in said.splitlines() if len(line.split(None, 1)) == 2)
    assert rows["loss.alpha"] == "0.25  (recipe: 0.05)" and rows["train.seed"] == str(config.train.seed)
    parameters = sum(parameter.numel() for parameter in load_model(trained).model.parameters())
    assert rows["total"] == f"{parameters:,}"
    assert f"2 workers, each {-(-config.data.global_batch // 2)} sequences" in said
    assert f"time: {config.train.steps:,} updates" in said and "nothing was started" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "begun")
    other = harness.tiny_config(store, model__hidden=24)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = []
    for dry in ([], ["--dry-run"]):
        assert train.main([*arguments(other, "begun", tmp_path), "--no-ray", *dry]) == 1
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1] and said[0].startswith("error: ") and "model.hidden" in said[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("trai",), "train"),
        (("swe",), "sweep"),
        (("train", "tim"), "timit"),
        (("train", "timit", "--loss.kl.st"), "--loss.kl.start"),
        (("evaluate", "--bou"), "--bounds"),
        (("prepare", "speech", "--sou"), "--source"),
        (("cluster", "up", "--ov"), "--overlay"),
        (("report", "runs/fi"), ""),
        (("unknown", "--x"), ""),
    ],
)
def test_completion(words: tuple[str, ...], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main(words) == 0
    assert capsys.readouterr().out.strip() == found


def test_a_shell_completes() -> None:
    """In bash, by the documented line."""
    script = f"""
        zfdist() {{ {sys.executable} -m jobs "$@"; }}
        eval "$(zfdist completion)"
        COMP_WORDS=(zfdist train d) COMP_CWORD=2
        _zfdist
        echo "${{COMPREPLY[@]}}"
        complete -p zfdist
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["demo", "complete -o default -F _zfdist zfdist"], done
