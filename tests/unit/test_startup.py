"""Phases of a start, from the process that was commanded to the one that makes the first step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfdist import startup
from zfdist.errors import ZfdistError
from zfdist.startup import Phase

NAMES = st.text("abcdefgh DS'", min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(NAMES, st.integers(0, 10_000), min_size=1))
def test_a_log_tells_what_was_measured(hundredths: dict[str, int]) -> None:
    phases, at = [Phase("", 1e9)], 0
    for name, lasted in hundredths.items():
        at += lasted
        phases.append(Phase(name, 1e9 + at / 100))
    startup.begin(phases)
    line = startup.described()
    assert line is not None and line.startswith(f"first step after {at / 100:.2f} s: ")
    (read,) = startup.read(f"starting 2 workers ...\n{line}\nstep 1\n")
    assert read == {name: pytest.approx(lasted / 100, abs=0.011) for name, lasted in hundredths.items()}
    assert startup.described() is None, "once"


def test_a_process_that_starts_no_run_notes_nothing() -> None:
    startup.begin([])
    startup.ended("imports")
    assert startup.so_far() == () and startup.described() is None
    with pytest.raises(ZfdistError, match="tells of no first step"):
        startup.read("step 1\n")


def test_phases_go_on_from_when_the_process_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    startup.begin_with_process("command")
    made, command = startup.so_far()
    assert made.end_s < command.end_s
    for _ in range(2):
        startup.tell("first step", says=True)
    (told,) = startup.read(capsys.readouterr().out)
    assert list(told) == ["command", "first step"]
    startup.begin_with_process("command")
    startup.tell("first step", says=False)
    assert capsys.readouterr().out == ""
