"""Every mistake in the words of jobs.train and jobs.sweep is answered in one sentence, before Ray starts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cluster import session
from jobs import sweep, train

Typed = Callable[[Callable[[Sequence[str]], int], Sequence[str]], tuple[int, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Give a command words, in an empty folder, which stays empty; returns its exit code and all that it says."""

    def connect(*arguments: object, **named: object) -> None:
        raise AssertionError("Ray was asked for")

    def run(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> tuple[int, str]:
        code = main(words)
        return code, "".join(capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(session, "connect", connect)
    yield run
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dmeo", "--name", "x"], 2, "error: 'dmeo' is not a recipe; perhaps you meant 'demo'"),
        (["demo", "--name", "x", "--model.zdim", "3"], 2, "--model.z-dim INT"),
        (["demo", "--name", "x", "--model.z-dim", "0"], 2, "error: --model.z-dim = 0: must be 1 to "),
        (["demo", "--name", "x", "--model.z-dim", "many"], 2, "Error parsing --model.z-dim: invalid"),
        (["demo", "--name", "x", "--loss.alpha=-1"], 2, "error: --loss.alpha = -1.0: must be 0 to 1000"),
        (["demo", "--name", "x", "--engine.precision", "fp8"], 2, "'--engine.precision'. Expected one of ('auto',"),
        (["demo", "--name", "../x"], 2, "error: --name '../x': must be letters"),
        (["demo", "--name", "x", "--workers", "0"], 2, "error: --workers 0: must be 1 or more"),
        (
            ["demo", "--name", "x", "--workers", "3:2"],
            2,
            "--workers 3:2: the second number must not be below the first",
        ),
        (["demo", "--name", "x", "--workers", "two"], 2, "--workers two: must be a number or MIN:MAX, e.g. 2 or 1:4"),
        (["demo", "--name", "x", "--hang-timeout", "0"], 2, "error: --hang-timeout 0: must be 1 or more"),
        (["demo", "--name", "x", "--data.root", "nowhere"], 1, "error: nowhere: "),
        (["demo", "--name", "x", "--wrokers", "2"], 2, "--workers"),
        (["demo"], 2, "--name"),
    ],
)
def test_mistakes_are_answered_before_ray_starts(words: list[str], code: int, message: str, typed: Typed) -> None:
    returned, out = typed(train.main, words)
    assert returned == code, out
    assert message in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "loss.alfa=0,1"], "unknown config name 'loss.alfa'; perhaps you meant 'loss.alpha'"),
        (["--grid", "loss.alpha"], "error: 'loss.alpha': must be NAME=VALUE,VALUE,..."),
        (["--grid", "loss.alpha=0,x"], "loss.alpha = 'x': must be a number"),
        (["--uniform", "loss.alpha=0"], "must be NAME=LOW,HIGH"),
        (["--samples", "-1"], "error: --samples -1: must be 0 or more"),
        (["--grid", "data.frame-samples=0"], "data.frame_samples = 0: must be 1 to"),
    ],
)
def test_mistakes_in_a_space_are_answered_before_ray_starts(words: list[str], message: str, typed: Typed) -> None:
    code, out = typed(sweep.main, ["demo", "--name", "x", *words])
    assert code == 2, out
    assert message in out


def test_help_shows_the_recipes_defaults(typed: Typed) -> None:
    code, out = typed(train.main, ["demo", "--help"])
    assert code == 0 and "--model.z-dim INT" in out and "(default: 16)" in out
    code, out = typed(train.main, ["--help"])
    assert code == 0 and "blizzard" in out
