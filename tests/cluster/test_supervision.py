"""A run on machines that die, come, are taken away with notice, and hang: against the same run undisturbed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clouds
import harness
import pytest
import several_nodes

from zfdist import run_protocol, train
from zfdist.checkpoint import folder as checkpoint
from zfdist.world import connect

pytestmark = [pytest.mark.timeout(1500), pytest.mark.drill]  # minutes: left to `make drills`
SCRIPT = Path(__file__).parent / "several_nodes.py"


@pytest.fixture(scope="module")
def drills(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the drills gave, by name, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("drills")
    with clouds.served(within_s=60) as endpoint:
        (folder / "endpoint").write_text(endpoint)
        program = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), str(store), "elastic", "hangs", "sweep"],
            capture_output=True,
            text=True,
            timeout=1200,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    lines = [json.loads(line) for line in program.stdout.splitlines() if line.startswith('{"drill"')]
    assert program.returncode == 0 and len(lines) == 3, program.stderr[-4000:]
    yield {line["drill"]: line for line in lines} | {"folder": folder}


def losses(run: Path, up_to: int) -> dict[int, float]:
    return {
        r["step"]: r["train/elbo_nats"]
        for r in run_protocol.records(run)
        if "train/elbo_nats" in r and r["step"] <= up_to
    }


def teams(said: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in said if line.startswith("starting ")]


def test_a_run_shrinks_and_grows_with_the_machines(drills: dict[str, Any], store: Path, tmp_path: Path) -> None:
    told = drills["elastic"]
    assert told["done"] == ["killed", "added", "taken"], told
    assert teams(told["said"]) == [2, 1, 2, 1], told
    assert told["outcome"][0] == "stopped", "and one failure was allowed: only the machine that died counts as one"
    restarts = [line for line in told["said"] if "starting again from step" in line]
    lost, grown, taken = restarts
    assert lost.startswith("lost worker ")
    assert grown.startswith("there is room for 1 worker more at step ")
    assert "is taken away in " in taken
    assert "EC2 spot interruption (terminate) in " in told["daemon"] and "drained node" in told["daemon"]

    run, last = drills["folder"] / "elastic", told["outcome"][1]
    for line in (grown, taken):
        at, saved = int(line.split("at step ")[1].split(";")[0]), int(line.split("from step ")[1].split()[0])
        assert saved >= at, "a planned end loses no step"
    at, saved = int(lost.split("at step ")[1].split(";")[0]), int(lost.split("from step ")[1].split()[0])
    assert at - saved < 2 * 20, "no more than the steps since the last checkpoint, or the one it died in"
    config = several_nodes.config(store, last, 10**6)
    train.train(config, tmp_path / "calm", connect(), harness.Recorder())
    calm, disturbed = losses(tmp_path / "calm", last), losses(run, last)
    assert disturbed.keys() >= {step for step in calm if step % 5 == 0}
    for step in calm.keys() & disturbed.keys():
        if step % 5 == 0:
            assert disturbed[step] == pytest.approx(calm[step], rel=1e-5), step


def test_every_way_of_standing_still_is_found_and_the_run_ends_bit_equal(
    drills: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    told, run = drills["hangs"], drills["folder"] / "hangs"
    assert told["outcome"] == ["finished", 70]
    sleeping, locked, frozen = (line for line in told["said"] if "starting again from step" in line)
    assert sleeping.startswith("worker 1 on ") and "made no progress for " in sleeping
    assert "several_nodes.py:" in sleeping and "all stacks are in hangs/" in sleeping
    assert sleeping.endswith("starting again from step 10 ...")
    assert locked.startswith("lost worker 0 on ") and locked.endswith("starting again from step 30 ...")
    assert frozen.startswith("lost worker 1 on ") and "no sign of life for " in frozen
    assert frozen.endswith("starting again from step 50 ...")
    stacks = [path.read_text() for path in (run / "hangs").iterdir()]
    assert any("Timeout (0:00:10)!" in text and "several_nodes.py" in text for text in stacks), "of the locked one"
    harness.run_ranks(2, _calm, str(store), str(tmp_path / "calm"))
    name = checkpoint.folder_of(Path(), 70) / checkpoint.WEIGHTS
    assert (run / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def _calm(store: str, folder: str) -> None:
    train.train(several_nodes.config(Path(store), 70, 10), Path(folder), connect(), harness.Recorder())


def test_a_trial_moves_from_a_machine_that_dies_and_from_one_that_is_taken_away(drills: dict[str, Any]) -> None:
    told = drills["sweep"]
    assert told["done"] == ["killed", "noticed", "taken"], told
    assert told["states"] == ["finished", "finished"], "one failure was allowed: only the machine that died is one"
    for trial in (drills["folder"] / "sweep" / "trials").iterdir():
        steps = [line["step"] for line in run_protocol.records(trial) if "valid/elbo_nats" in line]
        assert steps == list(range(100, 2001, 100)), "no step twice, none lost"


def test_nothing_is_left_behind(drills: dict[str, Any]) -> None:
    for drill in ("elastic", "hangs", "sweep"):
        assert not drills[drill]["left"], drill
        assert not (drills["folder"] / drill / ".ray").exists()
