"""A disk that is full while a checkpoint is written: a real one, of a few hundred KiB."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest
import torch

from zfdist import run_protocol, train, world
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.room import NoRoomError

HERE = world.World(0, 1, 0, torch.device("cpu"), None)
WEIGHTS = "checkpoints/step-00000008/model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    world.connect()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a folder on a disk of so many KiB; called again, the same folder with more or less room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")

    def sized(kib: int) -> Path:
        options = f"size={kib}k" + (",remount" if folder.is_mount() else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        return folder

    probe = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True)
    if probe.returncode:
        pytest.skip("this container may not mount")
    yield sized
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_run_goes_on_without_and_never_loses_what_it_has(
    store: Path, tmp_path: Path, disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = harness.tiny_config(store, checkpoint__every_steps=2)
    train.train(config, tmp_path / "undisturbed", HERE, harness.Recorder())
    kib = sum(p.stat().st_size for p in (tmp_path / "undisturbed/checkpoints/step-00000002").rglob("*")) // 1024
    run = disk(int(2.8 * kib)) / "run"
    with pytest.raises(
        NoRoomError, match=r"no checkpoint of step 8: it needs [\d.]+ MiB, .*; the one before is intact"
    ):
        train.train(config, run, HERE, harness.Recorder())
    assert checkpoint.steps(run)[0] == 2
    assert [line["step"] for line in run_protocol.records(run) if "checkpoint/skipped" in line][-1] == 6
    newest = checkpoint.newest_valid(run, say=print)
    assert newest is not None and newest.name == f"step-{checkpoint.steps(run)[-1]:08d}"
    disk(40 * kib)
    assert train.train(config, run, HERE, harness.Recorder()) == ("finished", 8)
    assert (run / WEIGHTS).read_bytes() == (tmp_path / "undisturbed" / WEIGHTS).read_bytes()


def test_a_disk_that_fills_up_while_writing_stops_the_run_with_a_sentence(
    store: Path, disk: Callable[[int], Path]
) -> None:
    run = disk(64) / "run"
    with pytest.raises(
        NoRoomError, match=r"no checkpoint of step 4: .*disk.run on .* could not be written \(.* left\)"
    ):
        train.train(harness.tiny_config(store), run, HERE, harness.Recorder())
    assert checkpoint.steps(run) == []
