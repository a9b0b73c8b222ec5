"""What the workers would refuse the command says before it starts them, and the run's folder stays as it was."""

import json
from pathlib import Path

import commands
import harness
import pytest

from zfdist import claim
from zfdist.config import Config
from zfdist.errors import ZfdistError
from zfdist.run_options import Machines, RunOptions
from zfdist.run_protocol import Weights


def refused(config: Config, run: Path, message: str, workers: int = 1, start_from: Weights | None = None) -> None:
    """Assert that `fit` refuses with a message and changes nothing in the folder of the run."""
    from cluster.run.fit import fit

    before = harness.tree(run.parent)
    with pytest.raises(ZfdistError) as caught:
        machines = Machines(workers=str(workers), gpu=False)
        fit(RunOptions(config, run, start_from, machines=machines), say=lambda line: None)
    assert message in str(caught.value), caught.value
    assert harness.tree(run.parent) == before


def test_a_run_that_may_not_go_on_stays_as_it_is(cluster: str, store: Path, trained: Path, tmp_path: Path) -> None:
    run = harness.copied(trained, tmp_path / "runs" / "run")
    (run / "stop").touch()
    longer = harness.tiny_config(store, train__steps=12)
    other_data = harness.tiny_config(harness.make_store(tmp_path / "other", seed=1))
    refused(longer.with_values({"train.seed": 9}), run, "train.seed = 1234, and now it is 9")
    refused(longer.with_values({"model.hidden": 17}), run, "model.hidden = 16, and now it is 17")
    refused(longer.with_values({"engine.precision": "bf16"}), run, "engine.precision = fp32, and now it is bf16")
    refused(longer.with_values({"engine.zero_stage": 3}), run, "cannot be read by 2 with", workers=2)
    refused(longer.with_values({"train.steps": 7}), run, "has come to step 8 already, and train.steps = 7")
    refused(longer.with_values({"data.root": str(tmp_path / "none")}), run, "no manifest.json")
    refused(other_data, run, "the fingerprint of the data")
    refused(longer, run, "room for 2", workers=64)
    with claim.held(run / ".lock"):
        refused(longer, run, "is being trained by another process (process")
    for weights in run.rglob("model.safetensors"):
        weights.with_name("manifest.json").write_text("{}")
    for _ in range(2):  # it never silently starts over
        refused(longer, run, "none of its 2 checkpoints is intact")


def test_a_refused_submission_leaves_the_note_of_the_one_before(
    cluster: str, store: Path, trained: Path, tmp_path: Path
) -> None:
    run = harness.copied(trained, tmp_path / "run")
    note = json.dumps({"command": ["train", "demo", "--name", "run", "--train.steps", "8"]})
    (run / "submission.json").write_text(note)
    before = harness.tree(tmp_path)
    given = commands.flags(harness.tiny_config(store, train__steps=12))
    of_train = ["train", "demo", "--name", "run", "--runs", str(tmp_path), *given]
    for changed, sentence in (
        (["--train.seed", "9"], "train.seed = 1234, and now it is 9"),
        (["--data.global-batch", "100000"], "data.global_batch = 100000: the training split has but"),
        (["--workers", "64"], "do not fit"),
    ):
        words = ["run", "run", str(tmp_path), *of_train, *changed]
        code, out = commands.run("cli.job_entrypoint", *words, folder=tmp_path)
        assert code != 0 and sentence in out and "starting" not in out and "Traceback" not in out, out
    words = ["sweep", "demo", "--name", "run", "--runs", str(tmp_path), *given]
    code, out = commands.run("cli.job_entrypoint", "run", "run", str(tmp_path), *words, folder=tmp_path)
    assert code == 2 and "was submitted as a train; take another --name for a sweep" in out, out
    assert harness.tree(tmp_path) == before


def test_a_new_run_that_is_refused_leaves_no_folder(cluster: str, store: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run, config = tmp_path / "runs" / "new", harness.tiny_config(store)
    refused(config.with_values({"model.density": "bernoulli"}), run, "model.density = bernoulli")
    refused(config, run, "no such run", start_from=Weights(str(tmp_path / "none")))
    refused(config.with_values({"model.hidden": 17}), run, "this run has 17", start_from=Weights(str(trained)))
    assert not run.exists()


def test_a_sweep_whose_data_are_others_stays_as_it_is(cluster: str, store: Path, trained: Path, tmp_path: Path) -> None:
    from cluster.sweep.driver import sweep
    from cluster.sweep.plan import SweepPlan, TrialMachines
    from cluster.sweep.record import prepare
    from cluster.sweep.search_space import Space

    other = harness.make_store(tmp_path / "other", seed=1)
    folder, base = tmp_path / "sweep", harness.tiny_config(other)
    harness.copied(trained, folder / "trials" / "000")
    (folder / "trials" / "000" / "result.json").unlink()
    before = harness.tree(folder)
    record = prepare(tmp_path / "nothing", base, Space(grid={"train.seed": (1234, 2)}), samples=0, seed=0)
    with pytest.raises(ZfdistError, match="the fingerprint of the data"):
        sweep(
            folder,
            base,
            record,
            SweepPlan(machines=TrialMachines(gpu=False)),
            show=lambda rows: None,
            say=lambda line: None,
        )
    assert harness.tree(folder) == before


@pytest.mark.drill
def test_a_user_without_a_home_trains(slow_config: Config, tmp_path: Path) -> None:
    words = ["demo", "--name", "u", *commands.flags(slow_config.with_values({"train.steps": 2}))]
    done = harness.as_stranger(*words, folder=tmp_path, job="train")
    assert done.returncode == 0 and "finished at step 2" in done.stdout, done
    assert "Traceback" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "runs/u/result.json").read_text())["step"] == 2
