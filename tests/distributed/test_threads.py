"""CPU threads of a run: as many as have work, as many as asked for, and afterwards as many as before."""

from pathlib import Path

import harness
import pytest
import torch

from zfdist.config import Config

BEFORE = 3


class Counting(harness.Recorder):
    """A reporter that looks how many threads a step had."""

    def progress(self, step: int) -> None:
        self.steps.append(torch.get_num_threads())


def train_with_threads(folder: Path, config: Config) -> tuple[set[int], int]:
    from zfdist import train, world

    torch.set_num_threads(BEFORE)
    reporter = Counting()
    train.train(config, folder, world.connect(), reporter)
    return set(reporter.steps), torch.get_num_threads()


@pytest.mark.parametrize(("asked", "taken"), [(0, 1), (2, 2)])
def test_a_tiny_network_takes_one_unless_told_otherwise(store: Path, tmp_path: Path, asked: int, taken: int) -> None:
    config = harness.tiny_config(store, train__steps=2, engine__threads_per_worker=asked)
    assert harness.run_ranks(1, train_with_threads, tmp_path, config) == [({taken}, BEFORE)]
