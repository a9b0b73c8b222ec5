"""One Ray for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

from zfdist.config import Config


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a local Ray with two CPUs; commands started meanwhile use it too."""
    ray = pytest.importorskip("ray")
    from cluster import session

    assert not ray.is_initialized()
    with session.connect(None, say=lambda line: None, cpus=2) as address:
        yield address


@pytest.fixture(scope="session")
def slow_config(store: Path) -> Config:
    """Long enough to be disturbed in the middle: some seconds, with a checkpoint each second."""
    return harness.tiny_config(
        store, train__steps=600, train__log_every=100, train__validate_every=100, checkpoint__every_steps=100
    )
