"""A run that measures its loop: all workers take the fastest, checkpoints say which, and a resumed run keeps it."""

import json
from pathlib import Path

import harness
import pytest
from test_resume import STEPS, shard_bytes, train_parts

from zfdist.checkpoint import folder as checkpoint


@pytest.mark.drill
def test_a_resumed_run_keeps_what_was_measured_whatever_the_cache_says_now(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = harness.tiny_config(store, model__recurrence="measured")
    unbroken, cut = tmp_path / "unbroken", tmp_path / "cut"
    harness.run_ranks(2, train_parts, [(str(unbroken), config, None), (str(cut), config, 3)])
    told = capfd.readouterr().out
    assert told.count("loop over time, forward and backward on ") == 2, "for both runs, from the cache for the second"
    taken = checkpoint.read_manifest(cut / "checkpoints/step-00000003").recurrence
    assert taken in ("native", "bptt", "reference") and f"loop by {taken}" in told

    (file,) = (tmp_path / "cache/zfdist/loops").glob("*.json")
    kept = json.loads(file.read_text())
    for trial in kept["trials"]:
        trial["seconds"] = 9.0 if trial["name"] == taken else 1.0
    file.write_text(json.dumps(kept))
    other = tmp_path / "other"
    harness.run_ranks(2, train_parts, [(str(cut), config, None), (str(other), config, 3)])
    assert f"loop by {taken}" in capfd.readouterr().out
    assert checkpoint.read_manifest(other / "checkpoints/step-00000003").recurrence != taken, "the cache is read"
    assert checkpoint.read_manifest(cut / f"checkpoints/step-{STEPS:08d}").recurrence == taken
    for pattern in ("model.safetensors", "*optim_states.pt"):
        assert shard_bytes(cut, pattern) == shard_bytes(unbroken, pattern)
