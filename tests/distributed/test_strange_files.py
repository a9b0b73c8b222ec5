"""Files that a run did not write, in its checkpoints: what a stranger put there is never unpickled."""

import json
import pickle
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from zfdist import atomic_io, train, world
from zfdist.checkpoint import export
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError
from zfdist.data.manifest import StoreError
from zfdist.data.store import Store
from zfdist.evaluation.evaluate import load_model
from zfdist.run_protocol import Weights

HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    world.connect()


class Writes:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def newest(run: Path) -> Path:
    return checkpoint.folder_of(run, checkpoint.steps(run)[-1])


def plant(path: Path, mark: Path) -> None:
    """Leave a file that makes another one if anybody unpickles it, as torch does or as pickle does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(Writes(mark), path)


def test_the_trap_works(tmp_path: Path) -> None:
    plant(tmp_path / "trap", tmp_path / "sprung")
    torch.load(tmp_path / "trap", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["mp_rank_01_model_states.pt", "more/zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_shard_that_the_manifest_does_not_list_is_not_loaded(
    name: str, store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mark = harness.copied(trained, tmp_path / "run"), tmp_path / "sprung"
    plant(newest(run) / checkpoint.SHARDS / "state" / name, mark)
    assert train.train(harness.tiny_config(store, train__steps=10), run, HERE, harness.Recorder()) == ("finished", 10)
    said = capsys.readouterr().out
    assert "the manifest does not list it" in said and f"{name}: " in said and "set aside" in said, said
    assert not mark.exists()
    assert (run / "checkpoints/step-00000008.damaged").is_dir() and checkpoint.steps(run)[0] == 4, "gone on from 4"


def test_shards_behind_a_link_are_not_loaded(store: Path, trained: Path, tmp_path: Path) -> None:
    run, mark = harness.copied(trained, tmp_path / "run"), tmp_path / "sprung"
    for step in checkpoint.steps(run):
        shards = checkpoint.folder_of(run, step) / checkpoint.SHARDS
        elsewhere = shards.rename(tmp_path / f"elsewhere-{step}")
        shards.symlink_to(elsewhere)
        plant(elsewhere / "state/mp_rank_01_model_states.pt", mark)
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact"):
        train.train(harness.tiny_config(store, train__steps=10), run, HERE, harness.Recorder())
    assert not mark.exists()


def test_weights_are_taken_from_a_run_whose_every_shard_is_a_trap(store: Path, trained: Path, tmp_path: Path) -> None:
    run, mark = harness.copied(trained, tmp_path / "run"), tmp_path / "sprung"
    for shard in run.glob("checkpoints/*/deepspeed/**/*.pt"):
        plant(shard, mark)
        plant(shard.with_name("mp_rank_01_model_states.pt"), mark)
    expected = load_file(newest(trained) / checkpoint.WEIGHTS)
    assert {name: w.shape for name, w in load_model(run).model.state_dict().items()} == {
        name: w.shape for name, w in expected.items()
    }
    export.write(newest(run), tmp_path / "export")
    config = harness.tiny_config(store, train__steps=1)
    ended = train.train(config, tmp_path / "new", HERE, harness.Recorder(), start_from=Weights(str(run)))
    assert ended == ("finished", 1)
    assert not mark.exists()


@pytest.mark.parametrize("pickled", ["torch", "pickle"])
def test_weights_that_are_a_pickle_are_refused(pickled: str, store: Path, trained: Path, tmp_path: Path) -> None:
    run, mark = harness.copied(trained, tmp_path / "run"), tmp_path / "sprung"
    folder = newest(run)
    for step in checkpoint.steps(run)[:-1]:
        checkpoint.folder_of(run, step).rename(tmp_path / f"away-{step}")
    weights = folder / checkpoint.WEIGHTS
    if pickled == "torch":
        plant(weights, mark)
    else:
        weights.write_bytes(pickle.dumps(Writes(mark)))
    listed = {"bytes": weights.stat().st_size, "xxh3_128": atomic_io.digest(weights)}
    _edit(folder / checkpoint.MANIFEST, lambda tree: tree["files"].update({checkpoint.WEIGHTS: listed}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no safetensors"):
        load_model(run)
    config = harness.tiny_config(store, train__steps=1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no safetensors"):
        train.train(config, tmp_path / "new", HERE, harness.Recorder(), start_from=Weights(str(run)))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../../../.bashrc", "/etc/cron.d/x", "deepspeed/../../x", ""])
def test_a_manifest_that_lists_files_elsewhere_is_refused(
    name: str, store: Path, trained: Path, tmp_path: Path
) -> None:
    run = harness.copied(trained, tmp_path / "run")
    entry = {"bytes": 0, "xxh3_128": ""}
    _edit(newest(run) / checkpoint.MANIFEST, lambda tree: tree["files"].update({name: entry}))
    with pytest.raises(CheckpointError, match="it lists "):
        checkpoint.read_manifest(newest(run))
    data = harness.copied(store, tmp_path / "data")
    _edit(data / "manifest.json", lambda tree: tree["splits"]["train"]["shards"][0].update(path=name))
    with pytest.raises(StoreError, match="which is in no data set"):
        Store.open(data)


def _edit(path: Path, change: Any) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
