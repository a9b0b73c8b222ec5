"""What a worker sets before CUDA starts, with a torch that says it has a GPU; and what it says of a full one."""

import os
from pathlib import Path

import harness
import pytest
import torch

from zfdist import train, world
from zfdist.engine import Engine
from zfdist.run_protocol import GpuMemoryError


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_worker_takes_its_share_and_asks_for_equal_bits(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    taken: list[tuple[float, torch.device]] = []
    world.connect()  # by gloo
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: taken.append(given))
    assert world.connect(share).device == torch.device("cuda", 0)
    assert taken == [(share, torch.device("cuda", 0))]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    world.connect(share)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "whoever set it meant it"


@pytest.mark.parametrize(("share", "said"), [(1.0, "its GPU: CUDA"), (0.25, "share .0.25. of a GPU.*--gpus-per-trial")])
def test_a_run_that_does_not_fit_says_so(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, said: str
) -> None:
    def forward(self: Engine, *inputs: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr(Engine, "forward", forward)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    config = harness.tiny_config(store)
    with pytest.raises(GpuMemoryError, match=rf"does not fit into .*{said}") as found:
        train.train(config, tmp_path / "run", world.connect(), harness.Recorder())
    assert "--engine.accumulation-steps" in str(found.value) and "\n" not in str(found.value)
