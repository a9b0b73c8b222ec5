"""The profiler: what it writes is complete and adds up, and it changes nothing."""

import gzip
import json
from pathlib import Path
from typing import Any

import harness
import pytest
from test_resume import comparable_metrics

from zfdist import profile
from zfdist.config import Config

STEPS = 20
LEFT_OUT = profile.WARM_UP_STEPS + 1 + profile.TRACE_STEPS
NEVER_IN_THE_TRACE = {"validation", "checkpoint", "logging"}  # with the steps of the config below


def train_twice(folder: Path, config: Config) -> None:
    from zfdist import train, world

    here = world.connect()
    for name, is_profiled in (("plain", False), ("profiled", True)):
        train.train(config, folder / name, here, harness.Recorder(), profile=is_profiled)


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 1), (2, 2)])
def test_a_profiled_run(store: Path, tmp_path: Path, world_size: int, zero_stage: int) -> None:
    config = harness.tiny_config(
        store, train__steps=STEPS, train__log_every=12, train__validate_every=12, checkpoint__every_steps=12,
        engine__zero_stage=zero_stage,
    )  # fmt: skip
    harness.run_ranks(world_size, train_twice, tmp_path, config)
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    weights = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    assert (plain / weights).read_bytes() == (profiled / weights).read_bytes()
    assert comparable_metrics(plain) == comparable_metrics(profiled)
    assert json.loads((plain / "config.json").read_text()) == json.loads((profiled / "config.json").read_text())
    assert not (plain / profile.FOLDER).exists()
    for rank in range(world_size):
        check_trace(profiled / profile.FOLDER / f"rank-{rank}.json.gz")
        found = json.loads((profiled / profile.FOLDER / f"rank-{rank}-breakdown.json").read_text())
        assert found["steps"] == STEPS - LEFT_OUT
        assert list(found["range_s"]) == [*profile.ROWS, "other"]
        assert sum(found["range_s"].values()) == pytest.approx(found["step_s"])
        assert all(seconds >= 0 for seconds in found["range_s"].values())
        silent = {name for name, seconds in found["range_s"].items() if seconds == 0}
        assert silent == set(), "each range was entered in these steps"


def check_trace(path: Path) -> None:
    """Chrome's format: a list of events, complete ones with a start and a duration in microseconds."""
    with gzip.open(path, "rt") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    ranges = [e for e in events if e.get("ph") == "X" and e.get("cat") == "user_annotation"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= e.keys() for e in ranges)
    steps = [e for e in ranges if e["name"].startswith("ProfilerStep#")]
    assert len(steps) == profile.TRACE_STEPS
    for name in set(profile.ROWS) - NEVER_IN_THE_TRACE:
        found = [e for e in ranges if e["name"] == name]
        times = 2 if name.endswith("core") else 1  # the recurrence and the backward LSTM
        assert len(found) == times * profile.TRACE_STEPS, name
        for event in found:
            assert any(s["ts"] <= event["ts"] and event["ts"] + event["dur"] <= s["ts"] + s["dur"] for s in steps)
    assert any(e.get("cat") == "cpu_op" for e in events), "no operations beside the ranges"


def test_a_run_that_ends_within_the_steps_left_out_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with profile.profiled(tmp_path, 0, said.append) as close_step:
        for _ in range(LEFT_OUT):
            close_step()
    assert said[-1] == f"no breakdown: the run ended within the first {LEFT_OUT} steps, which it leaves out"
    assert [p.name for p in (tmp_path / profile.FOLDER).iterdir()] == ["rank-0.json.gz"]


def test_a_breakdown_counts_every_moment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now_s)
    said: list[str] = []
    with profile.profiled(tmp_path, 3, said.append) as close_step:
        for step in range(LEFT_OUT + 2):
            with profile.span("forward tail"):
                now_s += 1
                with profile.span("forward core"):
                    now_s += 2
                now_s += 4
            with profile.span("validation", whole=True):
                now_s += 8
                with profile.span("forward core"):
                    now_s += 16 * (step > LEFT_OUT)
            now_s += 32
            close_step()
        with profile.span("data wait"):  # the loader says that there is no more
            now_s += 64
    found = json.loads((tmp_path / "profile/rank-3-breakdown.json").read_text())
    assert found["steps"] == 2 and found["step_s"] == 47 + 8
    assert {name: s for name, s in found["range_s"].items() if s} == {
        "forward tail": 5, "forward core": 2, "validation": 8 + 8, "other": 32,
    }  # fmt: skip
    assert "forward core          2.000000 s   3.6 %" in said[-1]


def test_off_a_range_is_nothing_and_on_it_is_off_again_after_an_error(tmp_path: Path) -> None:
    assert profile.span("optimizer") is profile.span("data wait")
    with pytest.raises(KeyError), profile.profiled(tmp_path, 0, print), profile.span("optimizer"):
        raise KeyError
    assert profile.span("optimizer") is profile.span("data wait")
