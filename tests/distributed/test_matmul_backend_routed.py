"""Float32 products through oneDNN hold in a real engine's forward and backward pass, and end with it."""

import harness
import torch
from torch import nn

from zfdist.config import EngineConfig, OptimConfig


def settings_of_updates(*knobs: str) -> list[tuple[str, set[str], str]]:
    """Make one update for each knob; see `_settings_of_an_update`."""
    return [_settings_of_an_update(matmul) for matmul in knobs]


def _settings_of_an_update(matmul: str) -> tuple[str, set[str], str]:
    """Return what the engine says, the setting seen while an update ran, and that after it."""
    from zfdist import world
    from zfdist.engine import Engine

    def setting() -> str:
        return torch.backends.mkldnn.matmul.fp32_precision

    engine = Engine(nn.Linear(8, 4), EngineConfig(matmul=matmul), OptimConfig(), world.connect())
    out = engine.forward(torch.ones(4, 8))
    seen = {setting()}
    out.register_hook(lambda _: seen.add(setting()))
    engine.backward(out.square().sum())
    assert engine.step(1e-3)().skipped is False
    said = engine.products
    engine.close()
    return said, seen, setting()


def test_in_forward_and_backward_and_put_back() -> None:
    off, on = harness.run_ranks(1, settings_of_updates, "torch", "auto")[0]
    assert off[0] == "by torch's default"
    assert off[1] == {off[2]} == {on[2]}
    if "would round" in on[0]:  # a processor that multiplies 16 bits in hardware
        assert on[1] == {on[2]}
    else:
        assert on[0].startswith("by oneDNN (error")
        assert on[1] == {"bf16"}
