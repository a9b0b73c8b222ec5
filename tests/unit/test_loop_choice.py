"""What a run takes: by hand, by rule, as before, or the fastest of those that are right; and the cache of trials."""

import json
import threading

import pytest
import torch

from zfdist import loop_choice
from zfdist.loop_choice import Asked, chosen
from zfdist.loop_probe import Place
from zfdist.model.recurrent.loop_trial import LoopCase, Trial
from zfdist.world import World

CASE = LoopCase("recurrence", 16, 4, 8, 8.0, 6, 3, "fp32")
ALONE = World(0, 1, 0, torch.device("cpu"), None)
NEW = Asked("measured", None, is_resumed=False)


class Probe:
    """Gives trials as a real one does, and counts how often it is asked."""

    def __init__(self, *trials):
        self.trials, self.asked = list(trials), []

    def __call__(self, case, place, loops):
        self.asked.append(list(loops))
        known = {trial.name: trial for trial in self.trials}
        return [known.get(name, Trial(name, problem="crashed")) for name in loops]


BPTT_FIRST = (Trial("native", 0.3, 1e-7), Trial("bptt", 0.2, 1e-7), Trial("reference", 0.9, 1e-7))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "zfdist/loops"


def choice(probe, asked=NEW, case=CASE, world=ALONE):
    return chosen(case, asked, world, onednn=True, probe=probe)


def test_the_fastest_that_is_right_is_taken_and_the_table_told():
    trials = (Trial("native", problem="ended by SIGSEGV"), Trial("bptt", 0.2, 1e-7), Trial("reference", 0.9, 2e-7))
    name, told = choice(Probe(*trials))
    assert name == "bptt" and "6 steps, 3 sequences, fp32; kept in " in told[0]
    assert [line.split()[0] for line in told[1:]] == ["bptt", "reference", "native"]
    assert "200.00 ms, relative error 1e-07" in told[1] and "ended by SIGSEGV" in told[3]


def test_whoever_waits_is_told_what_for_and_only_then(capsys):
    probe = Probe(*BPTT_FIRST)
    assert choice(probe).name == choice(probe).name == "bptt"
    said = capsys.readouterr().out
    assert said == "loop over time: trying native, bptt, reference, for 30 s at most ...\n"


def test_if_none_is_right_the_rule_decides():
    assert choice(Probe()).name == "native"


def test_trials_are_kept_for_the_same_case_alone():
    probe = Probe(*BPTT_FIRST)
    first, again = choice(probe), choice(probe)
    assert first == again and len(probe.asked) == 1
    for other in (CASE._replace(batch=4), CASE._replace(precision="bf16"), CASE._replace(hidden=17)):
        choice(probe, case=other)
    assert len(probe.asked) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"key": 1, "trials": []}', b"\xff" * 9, b"[" * 100_000])
def test_a_torn_file_is_measured_anew_and_replaced(cache, content):
    probe = Probe(*BPTT_FIRST)
    expected = choice(probe)
    (file,) = cache.glob("*.json")
    file.write_bytes(content)
    assert choice(probe) == expected == choice(probe)
    assert len(probe.asked) == 2 and json.loads(file.read_text())["trials"]


def test_a_file_with_the_right_key_and_other_trials_is_not_believed(cache):
    probe = Probe(*BPTT_FIRST)
    choice(probe)
    (file,) = cache.glob("*.json")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"trials": [{"name": "native", "seconds": None}]}))
    assert choice(probe).name == "bptt" and len(probe.asked) == 2


def test_a_cache_that_cannot_be_written_is_said_and_costs_a_probe_each_time(cache):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    probe = Probe(*BPTT_FIRST)
    for _ in range(2):
        name, told = choice(probe)
        assert name == "bptt" and "not kept: " in told[0]
    assert len(probe.asked) == 2


def test_what_may_end_otherwise_is_not_kept(cache):
    late = Trial("native", problem="was not tried: 30 s were over", may_change=True)
    probe = Probe(late, *BPTT_FIRST[1:])
    assert "not kept" in choice(probe).told[0] and choice(probe).name == "bptt" and len(probe.asked) == 2
    slowest = Trial("reference", problem="was not tried: 30 s were over", may_change=True)
    choice(Probe(*BPTT_FIRST[:2], slowest))
    assert len([*cache.glob("*.json")]) == 1


def test_jobs_that_come_at_once_measure_once():
    begun, go_on = threading.Event(), threading.Event()
    probe, names = Probe(*BPTT_FIRST), []

    def slow(*given):
        begun.set()
        assert go_on.wait(60)
        return probe(*given)

    jobs = [threading.Thread(target=lambda: names.append(choice(slow).name)) for _ in range(3)]
    for job in jobs:
        job.start()
    assert begun.wait(60)
    go_on.set()
    for job in jobs:
        job.join(60)
    assert names == ["bptt"] * 3 and len(probe.asked) == 1


def test_on_a_cpu_auto_does_not_measure():
    probe = Probe(*BPTT_FIRST)
    assert choice(probe, NEW._replace(name="auto")) == ("native", [])
    assert choice(probe, NEW._replace(name="auto"), CASE._replace(precision="bf16")) == ("bptt", [])
    assert choice(probe, NEW._replace(name="reference")) == ("reference", [])
    assert probe.asked == []


def test_on_a_gpu_auto_measures_once_for_all_of_its_kind(monkeypatch):
    monkeypatch.setattr(loop_choice, "machine", lambda device: {"device": "H100"})
    monkeypatch.setattr(loop_choice.loop_probe, "place_of", lambda device, onednn: Place(str(device), 0.5, 4, onednn))
    probe = Probe(Trial("graph", 0.1, 4e-3), Trial("triton", problem="crashed"), Trial("bptt", 0.3, 4e-3))
    case, auto = CASE._replace(precision="bf16"), NEW._replace(name="auto")
    for index in (0, 3):
        name, told = choice(probe, auto, case, ALONE._replace(device=torch.device("cuda", index)))
        assert name == "graph" and told[0].startswith("loop over time, forward and backward on H100 (6 steps")
    (asked,) = probe.asked
    assert set(asked) - {"triton"} == {"graph", "bptt", "reference"} and asked[-1] == "reference"


@pytest.mark.parametrize("name", ["auto", "measured"])
def test_a_run_that_goes_on_takes_what_it_took(name):
    probe = Probe(*BPTT_FIRST)
    assert choice(probe, Asked(name, "reference", is_resumed=True)) == ("reference", [])
    assert choice(probe, Asked(name, None, is_resumed=True)) == ("native", []), "a checkpoint that did not say"
    assert probe.asked == []
    gone = choice(probe, Asked(name, "triton", is_resumed=True))
    assert (
        gone.name == ("native" if name == "auto" else "bptt") and "was by triton, which does not serve" in gone.told[0]
    )


class Ranks:
    """Workers as threads: what each passes, all get."""

    def __init__(self, size):
        self._items, self._barrier = [None] * size, threading.Barrier(size)

    def world(self, rank):
        ranks = self

        class Worker(World):
            __slots__ = ()

            def gather(self, item):
                ranks._items[self.rank] = item
                ranks._barrier.wait(60)
                items = list(ranks._items)
                ranks._barrier.wait(60)
                return items

        return Worker(rank, len(self._items), rank, torch.device("cpu"), None)


def test_all_workers_take_what_the_first_measured_of_what_serves_all(monkeypatch):
    """Two machines of different devices, the second without a compiler."""
    ranks, probe, found = Ranks(2), Probe(*BPTT_FIRST), {}
    monkeypatch.setattr(loop_choice, "machine", lambda device: {"device": threading.current_thread().name})
    serves = loop_choice.recurrence.serves
    monkeypatch.setattr(
        loop_choice.recurrence,
        "serves",
        lambda name, *a: serves(name, *a) and (name, threading.current_thread().name) != ("native", "B200"),
    )

    def work(rank):
        found[rank] = choice(probe, world=ranks.world(rank))

    threads = [threading.Thread(target=work, args=(rank,), name=name) for rank, name in enumerate(("H100", "B200"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1] and found[0].name == "bptt"
    assert probe.asked == [["bptt", "reference"]]
    assert found[0].told[0].startswith("loop over time, forward and backward on H100")
    assert found[0].told[-1] == "other workers have another device (B200): not tried there"
