"""One run on Ray: it trains, survives what kills parts of it, and refuses in one sentence."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import commands
import pytest

from zfdist import run_protocol
from zfdist.config import Config
from zfdist.run_options import Machines, RunOptions

TWO = Machines(workers="2")
WEIGHTS = "checkpoints/step-00000600/model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(cluster: str, slow_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two workers that nothing happened to."""
    from cluster.run.fit import fit

    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    records: list[dict[str, Any]] = []
    end = fit(RunOptions(slow_config, folder, machines=TWO), on_report=records.append, say=lambda line: None)
    assert end == ("finished", 600)
    assert [r["step"] for r in records if "valid/elbo_nats" in r] == [100, 200, 300, 400, 500, 600]
    assert records == list(run_protocol.records(folder)), "each record is told once, in order"
    assert not (folder / ".ray").exists()
    assert commands.nothing_held()
    return folder


def test_stopped_run_goes_on_bit_equal_and_without_rays_own_state(
    undisturbed: Path, slow_config: Config, tmp_path: Path
) -> None:
    from cluster.run.fit import fit

    def stop_after_200(record: dict[str, Any]) -> None:
        if record["step"] == 200:
            (tmp_path / "stop").touch()

    stopped = fit(RunOptions(slow_config, tmp_path, machines=TWO), on_report=stop_after_200, say=lambda line: None)
    assert stopped.state == "stopped" and 200 <= stopped.step < 600
    torn = tmp_path / ".ray" / "launch" / "checkpoint_manager_snapshot.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"checkpoint_results": [{"checkp')
    assert fit(RunOptions(slow_config, tmp_path, machines=TWO), say=lambda line: None) == ("finished", 600)
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


@pytest.mark.drill
def test_killed_worker_is_replaced_and_the_run_ends_bit_equal(
    undisturbed: Path, slow_config: Config, tmp_path: Path
) -> None:
    from ray.util.state import list_actors

    from cluster.run.fit import fit

    killed: list[int] = []
    said: list[str] = []

    def kill_a_worker(record: dict[str, Any]) -> None:
        if record["step"] >= 200 and not killed:
            alive = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
            killed.append(max(actor.pid for actor in alive))
            os.kill(killed[0], signal.SIGKILL)

    end = fit(RunOptions(slow_config, tmp_path, machines=TWO), on_report=kill_a_worker, say=said.append)
    assert end == ("finished", 600)
    assert killed and any(line.startswith("lost worker ") and "starting again from step" in line for line in said)
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    assert commands.nothing_held()


def test_what_the_run_refuses_is_one_sentence_without_a_second_try(undisturbed: Path, slow_config: Config) -> None:
    from cluster.run.fit import fit
    from zfdist.checkpoint.folder import CheckpointError

    other = dataclasses.replace(slow_config, model=dataclasses.replace(slow_config.model, z_dim=5))
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"model\.z_dim = 4, and now it is 5") as refused:
        fit(RunOptions(other, undisturbed), say=said.append)
    assert "\n" not in str(refused.value)
    assert not any("again" in line for line in said)


def test_too_many_workers_are_refused_at_once(cluster: str, slow_config: Config, tmp_path: Path) -> None:
    from cluster.nodes import ClusterError
    from cluster.run.fit import fit

    with pytest.raises(ClusterError, match=r"--workers 1000 of 1 CPU each do not fit: the cluster has 1 machine with"):
        fit(RunOptions(slow_config, tmp_path, machines=Machines(workers="1000")))


def test_a_run_is_trained_by_one_process_at_a_time(cluster: str, slow_config: Config, tmp_path: Path) -> None:
    from zfdist.lease import BusyError
    from zfdist.worker import claim

    with (
        claim(tmp_path, wait_s=0),
        pytest.raises(BusyError, match=f"is being trained by another process .process {os.getpid()} on"),
        claim(tmp_path, wait_s=0.3),
    ):
        pass
