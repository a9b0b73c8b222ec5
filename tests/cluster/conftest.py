"""One Ray for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

from zfdist.config import Config

LONGEST = ("test_sweep.py", "test_fit.py", "test_commands.py", "test_submit.py", "test_full_disk.py")
"""What begins first where files are dealt to two processes, so that neither is left alone with one of these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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
