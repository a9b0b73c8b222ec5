"""Configs refuse what they do not know or cannot be, by name, and come back from JSON as they were."""

import dataclasses
import json
import subprocess
import sys
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfdist.config import Config, ConfigError, parse_value
from zfdist.config_base import Between

DEFAULTS = Config().flat()
OTHERS = {
    "model.hidden": 48, "model.aux_tanh": False, "model.aux_stop_gradient": "backward_net", "loss.alpha": 0.005,
    "loss.kl.kind": "cyclical", "data.root": "data/other place", "engine.zero_stage": 3, "train.seed": 2**63 - 1,
}  # fmt: skip


def refusal(name, value):
    with pytest.raises(ConfigError) as refused:
        Config().with_values({name: value})
    return str(refused.value)


def test_flat_has_every_knob_by_its_dotted_name():
    assert DEFAULTS["loss.kl.increment"] == 5e-5
    assert not any(isinstance(value, dict) for value in DEFAULTS.values())
    assert Config().with_values(DEFAULTS) == Config()


def test_with_values_makes_another_and_changes_nothing_else():
    base = Config()
    changed = base.with_values(OTHERS)
    assert base == Config()
    assert changed.flat() == DEFAULTS | OTHERS
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.loss.alpha = 1.0


@given(st.lists(st.sampled_from(sorted(OTHERS)), unique=True))
def test_json_round_trip(names):
    config = Config().with_values({name: OTHERS[name] for name in names})
    assert Config.from_json(config.to_json()) == config


@given(st.floats(0.0, 1000.0), st.floats(1e-16, 1.0))
def test_json_keeps_every_bit_of_a_number(alpha, eps):
    config = Config().with_values({"loss.alpha": alpha, "optim.adam_eps": eps})
    assert Config.from_json(config.to_json()) == config


def test_json_of_another_version():
    assert Config.from_json('{"loss": {"alpha": 0.5}}') == Config().with_values({"loss.alpha": 0.5})
    for text, message in (
        ('{"loss": {"alfa": 0.5}}', "unknown config name 'loss.alfa'; perhaps you meant 'loss.alpha'"),
        ('{"loss": 3}', "loss: must be an object, got 3"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
    ):
        with pytest.raises(ConfigError) as refused:
            Config.from_json(text)
        assert message in str(refused.value)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("loss.alpah", "loss.alpha"),
        ("model.hiden", "model.hidden"),
        ("kl.increment", "loss.kl.increment"),
        ("alpha", "loss.alpha"),
        ("train.step", "train.steps"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typo, meant):
    assert refusal(typo, 1) == f"unknown config name {typo!r}; perhaps you meant {meant!r}"


def test_a_name_like_no_other_gets_no_guess():
    assert refusal("qqqq.zzzz", 1) == "unknown config name 'qqqq.zzzz'"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss.alpha", -0.1, "loss.alpha = -0.1: must be 0 to 1000"),
        ("loss.alpha", float("nan"), "loss.alpha = nan: must be 0 to 1000"),
        ("loss.alpha", float("inf"), "loss.alpha = inf: must be 0 to 1000"),
        ("loss.kl.start", 1.5, "loss.kl.start = 1.5: must be 0 to 1"),
        ("engine.zero_stage", 4, "engine.zero_stage = 4: must be 0 to 3"),
        ("model.hidden", 0, "model.hidden = 0: must be 1 to"),
        ("model.hidden", 2.5, "model.hidden = 2.5: must be a whole number"),
        ("model.hidden", True, "model.hidden = True: must be a whole number"),
        ("loss.alpha", "much", "loss.alpha = 'much': must be a number"),
        ("loss.alpha", True, "loss.alpha = True: must be a number"),
        ("model.aux_tanh", 1, "model.aux_tanh = 1: must be true or false"),
        ("data.root", 3, "data.root = 3: must be text"),
        ("loss.kl.kind", "cubic", "loss.kl.kind = 'cubic': must be one of constant, linear, cyclical"),
        ("engine.accumulation_steps", 33, "must not exceed data.global_batch = 32"),
    ],
)
def test_a_bad_value_names_flag_value_and_range(name, value, message):
    assert message in refusal(name, value)


def test_a_whole_number_will_do_for_a_number():
    assert Config().with_values({"loss.alpha": 1}).loss.alpha == 1


def _sections(kind=Config):
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield hint
            yield from _sections(hint)
        else:
            assert kind is not Config, name


def test_every_range_holds_its_default_and_is_closed():
    tried = 0
    for section in _sections():
        for name, hint in typing.get_type_hints(section, include_extras=True).items():
            bounds = [part for part in typing.get_args(hint) if isinstance(part, Between)]
            if bounds:
                dotted, kind = f"{section.PATH}.{name}", typing.get_args(hint)[0]
                assert dotted in DEFAULTS
                assert bounds[0].low <= DEFAULTS[dotted] <= bounds[0].high
                for edge, outside in ((bounds[0].low, -1), (bounds[0].high, 1)):
                    below = kind(edge) + outside * (1 if kind is int else max(1e-6, abs(edge)))
                    assert "must be" in refusal(dotted, below), dotted
                tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("loss.alpha", "0.01", 0.01),
        ("loss.alpha", "1e-3", 1e-3),
        ("train.steps", "500", 500),
        ("model.aux_tanh", "false", False),
        ("model.aux_tanh", "True", True),
        ("loss.kl.kind", "linear", "linear"),
        ("data.root", "0", "0"),
    ],
)
def test_parse_value_gives_the_knobs_type(name, text, value):
    parsed = parse_value(name, text)
    assert parsed == value
    assert type(parsed) is type(value)
    Config().with_values({name: parsed})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.steps", "1.5", "train.steps = '1.5': must be a whole number"),
        ("train.steps", "", "train.steps = '': must be a whole number"),
        ("loss.alpha", "much", "loss.alpha = 'much': must be a number"),
        ("model.aux_tanh", "maybe", "model.aux_tanh = 'maybe': must be true or false"),
        ("loss.bet", "1", "unknown config name 'loss.bet'; perhaps you meant 'loss.beta'"),
    ],
)
def test_parse_value_refuses_by_name(name, text, message):
    with pytest.raises(ConfigError) as refused:
        parse_value(name, text)
    assert str(refused.value) == message


def test_config_is_light():
    code = "import sys, zfdist.config, zfdist.schedule; print(sorted({'torch', 'ray', 'numpy'} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.strip().replace("'", '"')) == []
