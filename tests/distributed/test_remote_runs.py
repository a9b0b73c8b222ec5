"""Runs in an object store: a real S3 client against a real server, with faults put between them."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import object_store
import pytest
import torch
from object_store import Door

from zfdist import checkpoint, lease, remote, storage, train, working_copy, world
from zfdist.config import Config
from zfdist.storage import Place, StorageError

STEPS = 8
HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with object_store.server() as port:
        yield port


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    world.connect()


@pytest.fixture
def door(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_LONGEST_PAUSE_S", 0.05)
    with object_store.door(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train.train(harness.tiny_config(store), folder, HERE, harness.Recorder())
    return folder


def train_remotely(
    uri: str, config: Config, cache: str, stop_after: int | None = None, owner: str = "me", private: bool = False
) -> tuple[str, int]:
    """Train as a worker of a cluster does; `private` gives every rank a disk of its own."""
    here = world.connect()
    own = Path(cache, str(here.rank)) if private else Path(cache)
    with working_copy.opened(uri, here.rank, owner=owner, cache=own, tries=config.checkpoint.max_failures) as copy:
        return tuple(train.train(config, copy.folder, here, harness.Recorder(stop_after), copy=copy))


def weights(uri: str, step: int = STEPS) -> bytes:
    """The weights of a step as the store has them."""
    place = Place(uri)
    (name,) = [n for n in place.sizes() if n.endswith(f"/{checkpoint.WEIGHTS}") and f"step-{step:08d}." in n]
    return place.read(name)


def weights_of(run: Path, step: int = STEPS) -> bytes:
    return (checkpoint.folder_of(run, step) / checkpoint.WEIGHTS).read_bytes()


def manifests(uri: str) -> list[str]:
    return sorted(n for n in Place(uri).sizes() if n.endswith("/manifest.json"))


def test_a_fresh_node_goes_on_bit_for_bit(server: int, store: Path, tmp_path: Path, undisturbed: Path) -> None:
    uri = object_store.uri(server, "runs/fresh")
    config = harness.tiny_config(store)
    assert train_remotely(uri, config, str(tmp_path / "a"), stop_after=5) == ("stopped", 5)
    assert train_remotely(uri, config, str(tmp_path / "b")) == ("finished", STEPS)
    assert weights(uri) == weights_of(undisturbed)
    assert lease.NAME not in Place(uri).sizes()
    lines = Place(uri).read("metrics.jsonl").decode().splitlines()
    assert lines == (working_copy.folder_of(uri, tmp_path / "b") / "metrics.jsonl").read_text().splitlines()
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in lines if "train/elbo_nats" in line]
    assert steps == [3, 6, 8]
    assert len(manifests(uri)) == 3


@pytest.mark.parametrize("fault", ["503", "reset", "truncated"])
def test_faults_that_pass_change_nothing(
    door: Door, store: Path, tmp_path: Path, undisturbed: Path, fault: Any
) -> None:
    uri = object_store.uri(door.port, f"runs/faults-{fault}")
    config = harness.tiny_config(store)
    chosen = (lambda method, path: method == "GET") if fault == "truncated" else (lambda method, path: True)
    assert train_remotely(uri, config, str(tmp_path / "a"), stop_after=5) == ("stopped", 5)
    for i in range(3):
        door.fail(4, fault, chosen)
        assert train_remotely(uri, config, str(tmp_path / str(i)), stop_after=1)[0] in ("stopped", "finished")
        assert door.failed == 4
    assert weights(uri) == weights_of(undisturbed)
