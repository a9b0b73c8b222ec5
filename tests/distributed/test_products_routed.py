"""Float32 products through oneDNN hold in a real engine's forward and backward pass, and end with it."""

import harness
import torch
from torch import nn

from zfdist.config import EngineConfig, OptimConfig


def settings_of_updates(*cases: tuple[int, str]) -> list[tuple[str, set[str], str]]:
    """Make one update for each width and knob; see `_settings_of_an_update`."""
    return [_settings_of_an_update(width, matmul) for width, matmul in cases]


def _settings_of_an_update(width: int, matmul: str) -> tuple[str, set[str], str]:
    """Return what the engine says, the setting seen while an update ran, and that after it."""
    from zfdist import world
    from zfdist.engine import Engine

    def setting() -> str:
        return torch.backends.mkldnn.matmul.fp32_precision

    engine = Engine(nn.Linear(width, 1024), EngineConfig(matmul=matmul), OptimConfig(), world.connect())
    out = engine.forward(torch.ones(4, width))
    seen = {setting()}
    out.register_hook(lambda _: seen.add(setting()))
    engine.backward(out.square().sum())
    assert engine.step(1e-3).skipped is False
    said = engine.products
    engine.close()
    return said, seen, setting()


def test_in_forward_and_backward_and_put_back() -> None:
    off, small, large = harness.run_ranks(1, settings_of_updates, (1024, "torch"), (8, "auto"), (1024, "auto"))[0]
    assert off[0] == small[0] == "by torch's default"
    assert off[1] == small[1] == {off[2]} == {large[2]}
    if "would round" in large[0]:  # a processor that multiplies 16 bits in hardware
        assert large[1] == {large[2]}
    else:
        assert large[0].startswith("by oneDNN (error")
        assert large[1] == {"bf16"}
