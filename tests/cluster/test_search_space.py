"""The list of trials is a pure function of the command."""

import json
import shutil
from pathlib import Path

import harness
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sweep.record import prepare
from cluster.sweep.search_space import DEFAULT, Space, essence, listing, trials
from zfdist.config import Config, ConfigError, Only

SPACE = Space(
    grid={"loss.alpha": (0.0, 0.005)},
    choice={"loss.kl.kind": ("constant", "linear")},
    uniform={"loss.beta": (0.0, 0.01), "model.hidden": (8, 64)},
    loguniform={"optim.learning_rate": (1e-4, 1e-2)},
)


def test_grid_first_then_samples_that_more_samples_do_not_change() -> None:
    few, many = trials(Config(), SPACE, 3, seed=1), trials(Config(), SPACE, 20, seed=1)
    assert few == many[:5]
    assert [t.id for t in few] == ["000", "001", "002", "003", "004"]
    base = Config().flat()
    assert [t.values["loss.alpha"] for t in few[:2]] == [0.0, 0.005]
    assert all(t.values[name] == base[name] for t in few[:2] for name in t.values if name != "loss.alpha")
    assert trials(Config(), SPACE, 3, seed=2)[2:] != few[2:]


def test_samples_lie_in_their_ranges_and_reach_all_choices() -> None:
    drawn = [t.values for t in trials(Config(), SPACE, 200, seed=0)[2:]]
    assert {v["loss.kl.kind"] for v in drawn} == {"constant", "linear"}
    assert {v["loss.alpha"] for v in drawn} == {0.0, 0.005}
    assert all(0 <= v["loss.beta"] <= 0.01 for v in drawn)
    assert all(isinstance(v["model.hidden"], int) and 8 <= v["model.hidden"] <= 64 for v in drawn)
    assert sum(v["optim.learning_rate"] < 1e-3 for v in drawn) in range(70, 130), "even in the logarithm"


def test_golden_draws() -> None:
    """A sweep that was begun must find its trials again, with any later version."""
    values = trials(Config(), SPACE, 1, seed=7)[2].values
    assert values == {
        "loss.alpha": 0.005,
        "loss.kl.kind": "constant",
        "loss.beta": 0.004658,
        "model.hidden": 41,
        "optim.learning_rate": 0.008803,
    }


def test_names_that_say_nothing_are_no_part_of_a_trial_and_no_two_trials_are_equal() -> None:
    found = listing(Config(), DEFAULT, 6, seed=0)
    assert (found.combinations, found.samples) == (8, 6)
    assert len(found.trials) == 14 - found.equal and found.equal > 0
    for trial in found.trials:
        is_annealed = trial.values["loss.kl.kind"] == "linear"
        assert ("loss.kl.start" in trial.values) == ("loss.kl.increment" in trial.values) == is_annealed
    assert len({essence(Config(), trial.values) for trial in found.trials}) == len(found.trials)


def test_a_condition_of_the_users_own_and_one_that_never_holds() -> None:
    space = Space(
        grid={"model.system": ("zforcing", "rnn"), "loss.alpha": (0.0, 0.1)},
        only={"loss.alpha": Only("model.system", ("zforcing",))},
    )
    assert [t.values for t in trials(Config(), space, 0, seed=0)] == [
        {"model.system": "zforcing", "loss.alpha": 0.0},
        {"model.system": "zforcing", "loss.alpha": 0.1},
        {"model.system": "rnn"},
    ]
    never = Space(grid={"loss.kl.start": (0.1, 0.2), "loss.kl.kind": ("constant",)})
    with pytest.raises(ConfigError, match=r"loss\.kl\.start says something only where loss\.kl\.kind is linear"):
        trials(Config(), never, 0, seed=0)
    circle = Space(
        grid={"loss.alpha": (0.0, 0.1), "loss.beta": (0.0, 0.1)},
        only={"loss.alpha": Only("loss.beta", (0.1,)), "loss.beta": Only("loss.alpha", (0.1,))},
    )
    with pytest.raises(ConfigError, match=r"loss\.alpha and loss\.beta are each swept only where the other is"):
        trials(Config(), circle, 0, seed=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 2**31))
def test_more_samples_only_append_also_where_some_are_equal(few: int, more: int, seed: int) -> None:
    space = Space(grid={"loss.alpha": (0.0, 0.1)}, choice={"loss.kl.kind": ("constant", "linear")})
    first, second = trials(Config(), space, few, seed), trials(Config(), space, few + more, seed)
    assert second[: len(first)] == first and len(second) <= 4


def test_default_space_holds_the_plain_model_without_annealing() -> None:
    plain = {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.kl.kind": "constant"}
    assert any(plain.items() <= t.values.items() for t in trials(Config(), DEFAULT, 0, seed=0))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space(grid={"loss.alfa": (0.0,)}), r"unknown config name 'loss\.alfa'; perhaps you meant 'loss\.alpha'"),
        (Space(grid={"loss.alpha": (-1.0,)}), r"loss\.alpha = -1\.0: must be 0 to 1000"),
        (Space(grid={"loss.beta": (0.0,)}, uniform={"loss.beta": (0.0, 1.0)}), r"loss\.beta is swept in two ways"),
        (Space(uniform={"loss.beta": (1.0, 0.0)}), r"loss\.beta = 1,0: must be two rising bounds"),
        (Space(loguniform={"loss.beta": (0.0, 1.0)}), r"loss\.beta = 0,1: must be two rising bounds, above 0"),
        (Space(), "nothing to try"),
    ],
)
def test_bad_spaces_are_refused_by_name(space: Space, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trials(Config(), space, samples=0 if space == Space() else 1, seed=0)


def test_another_space_under_the_same_name_is_refused_and_more_samples_are_not(tmp_path: Path) -> None:
    first = prepare(tmp_path, Config(), SPACE, samples=2, seed=0)
    first.write(tmp_path)
    more = prepare(tmp_path, Config(), SPACE, samples=4, seed=0)
    assert more.trials[:4] == first.trials
    more.write(tmp_path)
    recorded = json.loads((tmp_path / "sweep.json").read_text())
    assert [t["id"] for t in recorded["trials"]] == [f"{i:03}" for i in range(6)]
    with pytest.raises(ConfigError, match=r"loss\.alpha was 0\.0 and now is 0\.1"):
        prepare(tmp_path, Config().with_values({"loss.alpha": 0.1}), SPACE, samples=4, seed=0)
    with pytest.raises(ConfigError, match="it had 6 trials and now has 4"):
        prepare(tmp_path, Config(), SPACE, samples=2, seed=0)
    with pytest.raises(ConfigError, match="the sweep's seed was 0 and now is 1"):
        prepare(tmp_path, Config(), SPACE, samples=4, seed=1)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"decided": {"mo', b"[]", b"{}", b"\xff"])
def test_a_torn_file_is_made_anew_if_the_trials_are_the_same_and_else_refused(
    trained: Path, store: Path, content: bytes, tmp_path: Path
) -> None:
    base = harness.tiny_config(store)
    shutil.copytree(trained, tmp_path / "trials" / "000")
    (tmp_path / "trials" / "001").mkdir()  # begun, and not come to anything
    (tmp_path / "sweep.json").write_bytes(content)
    space = Space(grid={"train.seed": (base.train.seed, 2)})
    before = harness.tree(tmp_path)
    for other, message in (
        (Space(grid={"train.seed": (3, 2)}), r"train\.seed was 1234 and now is 3 in trial 000"),
        (Space(grid={"train.seed": (1234,)}), "it has a trial 001, and now there are 1 trials"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(tmp_path, base, other, samples=0, seed=0)
        assert harness.tree(tmp_path) == before
    record = prepare(tmp_path, base, space, samples=0, seed=0)
    assert harness.tree(tmp_path) == before, "it is written once the sweep is claimed"
    record.write(tmp_path)
    assert prepare(tmp_path, base, space, samples=0, seed=0) == record
