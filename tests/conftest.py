"""Fixtures for all tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for harness.py, also in child processes
sys.path.append(str(Path(__file__).parent / "benchmarks"))  # for peak.py, which tests of memory use as well

import harness


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store that tests only read."""
    return harness.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained to its end, 8 steps with checkpoints at 4 and 8; tests only read it."""
    from zfdist import train, world

    run = tmp_path_factory.mktemp("trained") / "run"
    train.train(harness.tiny_config(store), run, world.connect(), harness.Recorder())
    return run
