"""Commands that read a run or data set, or make one: what they refuse is one sentence, and changes nothing."""

from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from folders import write

from jobs import evaluate, generate, prepare, report

Main = Callable[[list[str]], int]
READERS: list[tuple[Main, list[str], str]] = [
    (evaluate.main, ["RUN", "--split", "nope"], "split 'nope'"),
    (evaluate.main, ["RUN", "--data", "OTHER"], "its units differ"),
    (evaluate.main, ["RUN", "--data", "RUN"], "no manifest.json"),
    (evaluate.main, ["RUN/checkpoints", "--split", "test"], "holds no finished checkpoint"),
    (evaluate.main, ["RUN", "--export", "RUN"], "holds something else than an export"),
    (evaluate.main, ["RUN", "--export", "RUN/checkpoints/step-00000008"], "holds something else than an export"),
    (evaluate.main, ["RUN", "--export", "DATA"], "holds something else than an export"),
    (evaluate.main, ["RUN", "--export", "RUN/config.json/x"], "a file is where a folder should be"),
    (evaluate.main, ["RUN", "--json", "RUN/config.json/x"], "a file is where a folder should be"),
    (generate.main, ["RUN", "--what", "samples", "--out", "RUN/config.json/x"], "a file is where a folder should be"),
    (generate.main, ["RUN", "--out", "OUT", "--split", "nope", "--what", "reconstructions"], "split 'nope'"),
    (report.main, ["RUN/checkpoints", "--out", "OUT"], "neither a run"),
    (report.main, ["RUN", "--out", "RUN/config.json"], "a file is where a folder should be"),
    (prepare.main, ["speech", "--source", "SOUND", "--out", "DATA"], "made from other input or options"),
    (prepare.main, ["speech", "--source", "SOUND", "--out", "RUN"], "is not an unfinished data set"),
    (prepare.main, ["speech", "--source", "SOUND", "--out", "RUN/config.json/x"], "Not a directory"),
    (prepare.main, ["speech", "--source", "nowhere", "--out", "DATA"], "nowhere"),
]


@pytest.mark.parametrize(
    ("main", "words", "message"), READERS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_nothing_is_changed(
    main: Main,
    words: list[str],
    message: str,
    trained: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {
        "RUN": harness.copied(trained, tmp_path / "run"),
        "DATA": harness.copied(store, tmp_path / "data"),
        "OTHER": harness.make_store(tmp_path / "other", seed=1),
        "OUT": tmp_path / "out",
        "SOUND": tmp_path / "sound",
    }
    for number in range(12):
        write(tmp_path / f"sound/{number}.wav", 9000, number)
    for name, place in places.items():
        words = [word.replace(name, str(place)) if word.split("/")[0] == name else word for word in words]
    before = harness.tree(tmp_path)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert harness.tree(tmp_path) == before


@pytest.mark.parametrize("job", ["train", "sweep"])
def test_places_for_runs_that_cannot_be_written_are_refused_before_ray_starts(
    job: str, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir(mode=0o555)
    data = ("--data.root", str(store))
    for runs, message in (("file", "file: Not a directory"), ("locked/deep/er", "locked: Permission denied")):
        done = harness.as_stranger("demo", "--name", "x", "--runs", runs, *data, folder=tmp_path, job=job)
        assert done.returncode == 1 and f"error: {message}" in done.stderr, done
        assert "Traceback" not in done.stderr and "Ray" not in done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "locked"]


def test_a_user_without_a_home_evaluates_and_is_told_where_caches_go(trained: Path, tmp_path: Path) -> None:
    done = harness.as_stranger(str(trained), folder=tmp_path, job="evaluate")
    assert done.returncode == 0 and "nats" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and "has no home folder to write to: caches go to" in done.stderr


def test_a_folder_that_may_not_be_read_is_named(trained: Path, tmp_path: Path) -> None:
    run = harness.copied(trained, tmp_path / "run")
    (run / "checkpoints").chmod(0)
    for job, words in (("evaluate", [str(run)]), ("report", [str(run), "--out", "out"])):
        done = harness.as_stranger(*words, folder=tmp_path, job=job)
        assert done.returncode and "Permission denied" in done.stderr and "Traceback" not in done.stderr, done


def test_from_a_wheel_the_cluster_files_are_asked_for(tmp_path: Path) -> None:
    done = harness.as_stranger("lint", folder=tmp_path, job="cluster")
    assert done.returncode == 1 and "ray-cluster.yaml: is not here; run this in a checkout" in done.stderr, done
