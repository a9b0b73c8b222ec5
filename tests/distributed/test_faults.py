"""What goes wrong in a run, and what the user then reads: non-finite numbers, damaged checkpoints, another config."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from zfdist import run_protocol, seeding, train, world
from zfdist.checkpoint import export, retention
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError
from zfdist.config import CheckpointConfig, Config
from zfdist.run_protocol import Weights

HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    """A world of one in this process, as `python` without a launcher has it."""
    world.connect()


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.train(harness.tiny_config(store), folder, HERE, harness.Recorder())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def train_with_nan_noise(folder: str, config: Config, bad_steps: set[int], bad_rank: int) -> str:
    """Train while one rank's noise is NaN at some steps; return the error's message, if there was one."""
    here = world.connect()
    normals = seeding.normals

    def poisoned(key: Any, positions_B: torch.Tensor, num_steps: int, dim: int) -> torch.Tensor:
        eps_TBZ = normals(key, positions_B, num_steps, dim)
        keys = [seeding.key(config.train.seed, "noise", step) for step in bad_steps]
        if key in keys and here.rank == bad_rank:
            eps_TBZ[:, 0] = torch.nan
        return eps_TBZ

    train.seeding.normals = poisoned  # type: ignore[attr-defined]
    try:
        train.train(config, Path(folder), here, harness.Recorder())
    except run_protocol.NonFiniteError as error:
        return str(error)
    return ""


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_nan_on_one_rank_skips_the_update_on_all(store: Path, tmp_path: Path, zero_stage: int) -> None:
    config = harness.tiny_config(store, engine__zero_stage=zero_stage, train__log_every=1)
    assert harness.run_ranks(2, train_with_nan_noise, str(tmp_path / "run"), config, {3}, 1) == ["", ""]
    lines = read_lines(tmp_path / "run")
    (skip,) = [line for line in lines if "skipped/terms" in line]
    assert skip["step"] == 3 and "elbo_nats" in skip["skipped/terms"] and len(skip["skipped/sequence_ids"]) == 1
    trained = [line for line in lines if "optim/skipped_updates" in line]
    assert [line["optim/skipped_updates"] for line in trained] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert "train/elbo_nats" not in trained[3] and all("train/elbo_nats" in line for line in trained[4:])
    weights = train.checkpoint.folder_of(tmp_path / "run", 8) / checkpoint.WEIGHTS
    from safetensors.torch import load_file

    assert all(torch.isfinite(w).all() for w in load_file(weights).values())


def test_too_many_in_a_row_stop_the_run(store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store, engine__max_nonfinite_steps=2)
    first, second = harness.run_ranks(2, train_with_nan_noise, str(tmp_path / "run"), config, {4, 5, 6}, 0)
    assert first == second
    assert "step 6: 2 updates in a row had a non-finite elbo_nats" in first and "sequences [" in first
    assert checkpoint.steps(tmp_path / "run") == [4]


def resume(run: Path, **values: Any) -> run_protocol.Outcome:
    config = Config.from_json((run / "config.json").read_text())
    changed = {name.replace("__", "."): value for name, value in values.items()}
    return train.train(config.with_values(changed), run, HERE, harness.Recorder())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda folder: flip_a_byte(next(folder.rglob("*optim_states.pt"))),
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
    "missing": lambda folder: next(folder.rglob("mp_rank_00_model_states.pt")).unlink(),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "st'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_set_aside_and_the_one_before_taken(
    run: Path, finished: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](run / "checkpoints/step-00000008")
    assert resume(run) == ("finished", 8)
    assert "damaged checkpoint set aside" in capfd.readouterr().out
    assert (run / "checkpoints/step-00000008.damaged").is_dir()
    weights = "checkpoints/step-00000008/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()


def test_swapped_checkpoints_are_found(run: Path) -> None:
    """The same file names and sizes, but of another step."""
    shutil.copy2(run / "checkpoints/step-00000004/model.safetensors", run / "checkpoints/step-00000008")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content is not what was written"):
        checkpoint.verify(run / "checkpoints/step-00000008")


def test_no_intact_checkpoint_never_starts_over(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        flip_a_byte(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact"):
        resume(run)


def test_leftovers_of_a_crash_are_removed(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints/step-00000012.partial").mkdir()
    assert resume(run) == ("finished", 8)
    assert "step-00000012.partial: left unfinished" in capfd.readouterr().out
    assert checkpoint.steps(run) == [4, 8]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model__z_dim", 5, "model.z_dim = 4, and now it is 5"),
        ("data__global_batch", 8, "data.global_batch = 7, and now it is 8"),
        ("train__seed", 1, "train.seed = 1234, and now it is 1"),
        ("engine__precision", "bf16", "engine.precision = fp32, and now it is bf16"),
        ("engine__zero_stage", 3, "zero_stage = 1 and cannot be read by 1 with engine.zero_stage = 3"),
    ],
)
def test_another_run_under_the_same_name_is_refused(run: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
        resume(run, **{name: value})
    assert checkpoint.steps(run) == [4, 8]


def test_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    other = harness.make_store(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"fingerprint of the data = [0-9a-f]{64}, and now it is [0-9a-f]{64}"):
        resume(run, data__root=str(other))


def test_what_may_change_does(run: Path) -> None:
    assert resume(run, loss__alpha=0.5, train__steps=10, optim__learning_rate=1e-4) == ("finished", 10)
    last = [line for line in read_lines(run) if "weights/alpha" in line][-1]
    assert (last["weights/alpha"], last["optim/learning_rate"]) == (0.5, 1e-4)


def test_start_from_takes_the_weights_along(run: Path, store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store, train__steps=1, optim__learning_rate=0.0)
    train.train(config, tmp_path / "new", HERE, harness.Recorder(), start_from=Weights(str(run)))
    best = checkpoint.best(run)
    assert best is not None
    weights = (best / checkpoint.WEIGHTS).read_bytes()
    assert (tmp_path / "new/checkpoints/step-00000001/model.safetensors").read_bytes() == weights
    with pytest.raises(CheckpointError, match=r"model\.hidden = 16, this run has 8"):
        other = config.with_values({"model.hidden": 8})
        train.train(other, tmp_path / "newer", HERE, harness.Recorder(), start_from=Weights(str(run)))


def test_retention(run: Path) -> None:
    config = CheckpointConfig(keep_last=1, keep_best=0, keep_every_steps=4)
    retention.prune(run, config)
    assert checkpoint.steps(run) == [4, 8]
    retention.prune(run, CheckpointConfig(keep_last=1, keep_best=0))
    assert checkpoint.steps(run) == [8]


def test_retention_keeps_the_best(run: Path) -> None:
    manifest = run / "checkpoints/step-00000004/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["validation"]["valid/elbo_nats"] = 1e9
    manifest.write_text(json.dumps(tree))
    retention.prune(run, CheckpointConfig(keep_last=1, keep_best=1))
    assert checkpoint.steps(run) == [4, 8]
    assert checkpoint.resolve(run).name == "step-00000004"


def test_export_is_enough_to_evaluate(run: Path, tmp_path: Path) -> None:
    from zfdist.evaluation.evaluate import load_model

    export.write(checkpoint.resolve(run), tmp_path / "export")
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == [
        "config.json",
        "manifest.json",
        checkpoint.WEIGHTS,
    ]
    ours, theirs = load_model(run).model.state_dict(), load_model(tmp_path / "export").model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
