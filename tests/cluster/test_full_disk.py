"""A disk that fills up under a run: one launch, one sentence that names the folder, and the run goes on once it may."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import commands
import harness
import pytest

from zfdist import run_protocol
from zfdist.checkpoint.room import NoRoomError
from zfdist.run_options import Machines, RunOptions


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.drill
@pytest.mark.parametrize("workers", [1, 2])
def test_one_launch_one_sentence_and_nothing_lost(cluster: str, store: Path, disk: Path, workers: int) -> None:
    from cluster.run.fit import fit

    run, said = disk / "run", list[str]()
    config = harness.tiny_config(store, train__steps=400, checkpoint__every_steps=10)
    config = config.with_values({"train.log_every": 1, "train.validate_every": 400})
    options = RunOptions(config, run, machines=Machines(workers=str(workers), gpu=False))

    def fill(record: dict[str, Any]) -> None:
        """Take all that is left once there is a checkpoint."""
        if record["step"] >= 20 and not (disk / "rubbish").exists():
            subprocess.run(["sh", "-c", f"cat /dev/zero >{disk}/rubbish"], stderr=subprocess.DEVNULL)

    with pytest.raises(NoRoomError, match=f"{run}.* (could not be written|left)") as caught:
        fit(options, on_report=fill, say=said.append)
    assert "free some space" in str(caught.value) and "\n" not in str(caught.value), caught.value
    assert sum(line.startswith("starting") for line in said) == 1, said
    with pytest.raises(NoRoomError, match=f"{disk}"):  # and again, while there is none
        fit(options, say=said.append)

    (disk / "rubbish").unlink()
    first = min(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*[0-9]"))
    steps: list[int] = []
    outcome = fit(options, on_report=lambda r: steps.append(r["step"]), say=said.append)
    assert outcome == ("finished", 400) and min(steps) > first > 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_a_sweep_stops_with_one_sentence_and_tries_no_trial_again(
    cluster: str, store: Path, disk: Path, workers: int
) -> None:
    from cluster.sweep.driver import sweep
    from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
    from cluster.sweep.record import prepare
    from cluster.sweep.row import Row
    from cluster.sweep.search_space import Space

    folder = disk / "sweep"
    config = harness.tiny_config(
        store, train__steps=100, checkpoint__every_steps=20, train__log_every=1, train__validate_every=100
    )
    config = config.with_values({"checkpoint.keep_last": 1})  # both trials fit
    record = prepare(folder, config, Space(grid={"loss.alpha": (0.0, 0.01)}), samples=0, seed=0)
    plan = SweepPlan(Stopping("none"), TrialMachines(workers, gpu=False, trials_at_once=1))

    def fill(rows: Sequence[Row]) -> None:
        if any(run_protocol.records(folder / "trials/000")) and not (disk / "rubbish").exists():
            subprocess.run(["sh", "-c", f"cat /dev/zero >{disk}/rubbish"], stderr=subprocess.DEVNULL)

    with pytest.raises(NoRoomError, match=f"trial 000: .*{folder}.*the same command goes on") as caught:
        sweep(folder, config, record, plan, show=fill, say=lambda line: None)
    assert "\n" not in str(caught.value) and not (folder / "trials/001").exists()
    commands.wait_for(commands.nothing_held, "all CPUs free and no placement group left", within_s=30)
    (disk / "rubbish").unlink()
    results = sweep(folder, config, record, plan, show=lambda rows: None, say=lambda line: None)
    assert [result["state"] for result in results] == ["finished", "finished"]
