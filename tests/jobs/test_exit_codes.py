"""Exit codes mean the same in every command: 0 done, 1 refused in one sentence, 2 a wrong command line, 130 Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs import bench, cluster, demo, evaluate, generate, paper, prepare, report, sweep, train
from jobs.cli import job_entrypoint

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """A command, and what it is given: RUN, DATA and SOUND are there, NONE is not, and OUT is to be made."""

    main: Callable[[Sequence[str]], int]
    refused: str
    """Bad input, which only looking at it shows."""
    good: str = ""
    """What it works on when Ctrl-C comes."""
    opens: str = ""
    """A file that it opens then."""
    verb: str = ""


CASES = {
    "train": Case(train.main, "demo --name x --data.root NONE", "demo --name x --data.root DATA", "DATA/manifest.json"),
    "sweep": Case(sweep.main, "demo --name x --data.root NONE", "demo --name x --data.root DATA", "DATA/manifest.json"),
    "prepare speech": Case(
        prepare.main, "--source NONE --out OUT", "--source SOUND --out OUT", "SOUND/0.wav", verb="speech"
    ),
    "prepare timit": Case(
        prepare.main, "--source SOUND --out OUT", "--source TIMIT --out OUT", "SA1.WAV", verb="timit"
    ),
    "prepare blizzard": Case(
        prepare.main, "--source NONE --out OUT", "--source SOUND --out OUT", "SOUND/0.wav", verb="blizzard"
    ),
    "prepare mnist": Case(
        prepare.main, "--source SOUND --out OUT", "--source SOUND --out OUT", "SOUND/0.wav", verb="mnist"
    ),
    "prepare text": Case(prepare.main, "--source NONE --out OUT", "--source LIST --out OUT", "LIST", verb="text"),
    "evaluate": Case(evaluate.main, "RUN --split nope", "RUN", "manifest.json"),
    "generate": Case(generate.main, "NONE --what samples --out OUT", "RUN --what samples --out OUT", "manifest.json"),
    "report": Case(report.main, "NONE --out OUT", "RUN --out OUT", "config.json"),
    "paper": Case(paper.main, "table1 --runs NONE --out OUT", "table1 --runs RUN --out OUT", "config.json"),
    "bench": Case(bench.main, "", "core", "/proc/cpuinfo"),
    "demo": Case(demo.main, "", "", "/sample/"),
    "job_entrypoint": Case(job_entrypoint.main, "again x NONE", "again run STORAGE", "submission.json"),
    "cluster lint": Case(cluster.main, "--file NONE", "--file LIST", "LIST", verb="lint"),
    "cluster plan": Case(
        cluster.main, "demo --from-run NONE --x-dim 20", "demo --data.root DATA", "DATA/manifest.json", verb="plan"
    ),
    "cluster up": Case(cluster.main, "--file NONE", "--file LIST", "LIST", verb="up"),
    "cluster down": Case(cluster.main, "--file NONE", "--file LIST", "LIST", verb="down"),
    "cluster doctor": Case(
        cluster.main, "--file NONE --storage OUT", "--file LIST --storage OUT", "LIST", verb="doctor"
    ),
    "cluster status": Case(cluster.main, "--file NONE", "--file LIST", "LIST", verb="status"),
    "cluster logs": Case(cluster.main, "--file NONE x", "--file LIST x", "LIST", verb="logs"),
    "cluster stop": Case(cluster.main, "--file NONE x", "--file LIST x", "LIST", verb="stop"),
    "cluster resume": Case(
        cluster.main, "--file NONE --storage OUT x", "--file LIST --storage OUT x", "LIST", verb="resume"
    ),
    "cluster submit": Case(
        cluster.main,
        "--file NONE --storage OUT train demo --name x",
        "--file LIST --storage OUT train demo --name x",
        "LIST",
        verb="submit",
    ),
}
# Without a parser of flags: it is what `cluster submit` starts on the cluster.
WITHOUT_HELP = {"job_entrypoint"}
# Their input is this checkout.
NEVER_REFUSED = {"bench", "demo"}


class Places(NamedTuple):
    """Where the names in the cases are."""

    folder: Path
    run: Path
    data: Path

    def __call__(self, text: str) -> list[str]:
        """Return words with their names replaced."""
        places = {
            "RUN": self.run, "DATA": self.data, "NONE": self.folder / "none", "OUT": self.folder / "out",
            "SOUND": self.folder / "sound", "LIST": self.folder / "list.txt", "STORAGE": self.folder / "storage",
            "TIMIT": self.folder / "timit",
        }  # fmt: skip
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text.split()


@pytest.fixture
def places(tmp_path: Path, trained: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    from folders import write

    write(tmp_path / "sound/0.wav", 9000, 0)
    speaker = tmp_path / "timit/TRAIN/DR1/FCJF0"
    speaker.mkdir(parents=True)
    shutil.copy(tmp_path / "sound/0.wav", speaker / "SA1.WAV")
    (tmp_path / "list.txt").write_text("a sentence of words\n")
    (tmp_path / "storage/run").mkdir(parents=True)
    (tmp_path / "storage/run/submission.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # which commands set, and tests after these must not see
    return Places(tmp_path, trained, store)


@pytest.mark.parametrize("name", sorted(CASES.keys() - WITHOUT_HELP))
def test_help_is_done(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    recipe = ["demo"] if name in ("train", "sweep", "cluster plan") else []
    assert case.main([*case.verb.split(), *recipe, "--help"]) == 0
    out, error = capsys.readouterr()
    assert "usage: zfdist" in out and not error


@pytest.mark.parametrize("name", sorted(CASES))
def test_an_unknown_flag_is_a_wrong_command_line(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    words = [*case.verb.split(), *places(case.good), "--no-such-flag", "3"]
    if name in ("job_entrypoint", "cluster submit"):  # what follows there is another command's
        words = [*case.verb.split(), "--no-such-flag"]
    assert case.main(words) == 2
    error = capsys.readouterr().err
    assert "no-such-flag" in error or "must be: run NAME" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", sorted(CASES.keys() - NEVER_REFUSED))
def test_bad_input_is_refused_in_one_sentence(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    assert case.main([*case.verb.split(), *places(case.refused)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not (places.folder / "out").exists() and not (places.folder / "runs").exists()


class _CtrlC:
    """An audit hook that sends this process SIGINT when it opens a file; hooks stay, so it is one, and is armed."""

    part = ""
    hooked = False

    def arm(self, part: str) -> None:
        self.part = part
        if not self.hooked:
            sys.addaudithook(self._look)
            self.hooked = True

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.part and event == "open" and self.part in str(arguments[0]):
            self.part = ""
            signal.raise_signal(signal.SIGINT)


ctrl_c = _CtrlC()


@pytest.fixture
def armed() -> Iterator[_CtrlC]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts tests in the background ignores it
    yield ctrl_c
    ctrl_c.part = ""
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", sorted(CASES))
def test_ctrl_c_interrupts(name: str, places: Places, armed: _CtrlC, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    words = [*case.verb.split(), *places(case.good)]
    armed.arm(" ".join(places(case.opens)))
    assert case.main(words) == 130
    assert not armed.part, "it never opened the file"
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "interrupted; the same command goes on from what it has written"
    assert "Traceback" not in error


def test_ctrl_c_before_a_command_is_imported_is_no_traceback() -> None:
    code = (
        "import signal, sys; from jobs import __main__ as door\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.addaudithook(lambda event, given: event == 'import' and given[0] == 'tyro'"
        " and signal.raise_signal(signal.SIGINT))\n"
        "door.main(['train', 'demo', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was begun\n")


PIPED = {
    "help": (["prepare", "text", "--help"], 0),
    "overview": (["train", "--help"], 0),
    "said": (["cluster", "lint"], 0),
    "refused": (["cluster", "lint", "--file", "none.yaml"], 1),
}


def _with_no_reader(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command whose output nobody reads, as after `| head` has had enough."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, "-m", f"jobs.{words[0]}", *words[1:]],
            stdout=writing, stderr=subprocess.PIPE, text=True, cwd=folder, timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        os.close(writing)


@pytest.mark.parametrize("name", PIPED)
def test_a_reader_that_has_gone_is_no_traceback(name: str) -> None:
    words, code = PIPED[name]
    done = _with_no_reader(words, ROOT)
    assert done.returncode == code and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done
    assert done.stderr.count("\n") == code


def test_a_sweep_goes_on_though_nobody_reads_its_tables() -> None:
    code = (
        "import sys; from jobs.cli.sweep_table import Board\n"
        "with Board(['loss.alpha'], 3) as board:\n"
        "    for _ in range(3): board.say('x' * 9999)\n"
        "print('went on', file=sys.stderr)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert done.returncode == 0 and done.stderr == "went on\n", done


def test_what_a_command_writes_is_written_though_nobody_reads_what_it_says(trained: Path, tmp_path: Path) -> None:
    done = _with_no_reader(["evaluate", str(trained), "--json", "e.json"], tmp_path)
    assert done.returncode == 0 and not done.stderr and (tmp_path / "e.json").is_file(), done
