"""What crashes, hangs or lies while implementations are tried is out with its reason, and the rest is tried."""

import pytest
import torch

from zfdist.loop_probe import place_of, probed
from zfdist.model.recurrent.loop_trial import LoopCase
from zfdist.model.recurrent.recurrence import LOOPS

CASE = LoopCase("recurrence", 16, 4, 8, 8.0, 6, 3, "fp32")
WORDS = {
    "segfaults": "ended by SIGSEGV",
    "hangs": "took longer than 4 s",
    "spins": "took longer than 4 s",
    "leaves": "ended its process (exit code 0)",
    "raises": "RuntimeError: no kernel image is available",
    "not_finite": "gives numbers that are not finite",
}


def tried(*names, **limits):
    loops = {name: LOOPS.get(name, f"bad_loops:{name}") for name in names}
    trials = probed(CASE, place_of(torch.device("cpu"), onednn=True), loops, **({"limit_s": 280} | limits))
    assert [trial.name for trial in trials] == list(names)
    return {trial.name: trial for trial in trials}


@pytest.mark.drill
def test_a_crash_and_a_hang_cost_nobody_else_a_trial():
    trials = tried("bptt", "segfaults", "hangs", each_s=4)
    assert trials["bptt"].problem is None and trials["bptt"].seconds > 0
    assert trials["segfaults"].problem == WORDS["segfaults"] and trials["hangs"].problem == WORDS["hangs"]


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_every_kind_of_fault_is_told_and_those_behind_it_are_tried():
    trials = tried("reference", *WORDS, "native", each_s=4, limit_s=580)
    assert {name: trials[name].problem for name in WORDS} == WORDS
    assert trials["reference"].problem is None and trials["native"].problem is None


def test_when_the_time_is_over_the_rest_is_not_tried_and_may_be_another_time():
    trials = tried("bptt", "native", limit_s=0.5)
    assert {trial.problem for trial in trials.values()} == {"was not tried: 0.5 s were over"}
    assert all(trial.may_change for trial in trials.values())


def test_a_process_that_cannot_even_begin_says_why(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no torch here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tried("bptt")["bptt"].problem.startswith("could not be tried: ")
