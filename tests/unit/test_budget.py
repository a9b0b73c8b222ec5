"""A budget of parameters: met as nearly as can be, spent on what has weight in the objective, kept by a run."""

import dataclasses
import itertools

import pytest
import torch
from small_systems import SYSTEMS, B, T, data, make, run

from zfdist.config import ConfigError, LossConfig, ModelConfig
from zfdist.model.objective import objective
from zfdist.model.systems import build, idle_heads, network_of, parameter_counts, sized, sized_as
from zfdist.schedule import Weights

EVERY_HEAD = LossConfig(alpha=0.1, beta=0.1)
every_system = pytest.mark.parametrize("system", SYSTEMS)


@every_system
@pytest.mark.parametrize("budget", [200_000, 1_000_000, 19_556_640])
def test_a_budget_is_met_as_nearly_as_one_unit_of_hidden_allows(system, budget):
    config = ModelConfig(system=system, hidden=1024, mlp_dim=512, z_dim=32, parameter_budget=budget)
    chosen = sized(config, EVERY_HEAD, 200)
    assert chosen.parameter_budget == 0
    assert (chosen.z_dim, chosen.system) == (32, system)
    assert chosen.mlp_dim == max(1, round(chosen.hidden / 2))
    assert sized(chosen, EVERY_HEAD, 200) is chosen

    def off(hidden):
        near = ModelConfig(system=system, hidden=hidden, mlp_dim=max(1, round(hidden / 2)), z_dim=32)
        with torch.device("meta"):
            return abs(parameter_counts(build(near, 200, 0))["total"] - budget)

    assert off(chosen.hidden) <= min(off(chosen.hidden - 1), off(chosen.hidden + 1))
    assert off(chosen.hidden) < 0.05 * budget


def test_a_budget_out_of_reach_is_named():
    with pytest.raises(ConfigError, match=r"model.parameter_budget = 10: .* at least \d+ parameters"):
        sized(ModelConfig(system="rnn", parameter_budget=10), EVERY_HEAD, 200)
    assert sized(ModelConfig(parameter_budget=2**31), EVERY_HEAD, 200).hidden > 10_000


@every_system
def test_a_budget_is_spent_on_what_has_weight_in_the_objective(system):
    """A head counts exactly if some weight makes its gradient other than zero."""
    head = {"label_classes": 2} if network_of(ModelConfig(system=system)).has_latents else {}
    model, (frames, lengths, eps) = make(system, **head), data()
    for alpha, beta, label in itertools.product((0.0, 0.5), repeat=3) if head else [(0.5, 0.5, 0.5)]:
        loss = LossConfig(alpha=alpha, beta=beta, label=label)
        model.zero_grad()
        labels = torch.tensor([0, 1, -1])
        terms, mask = run(model, frames, lengths, eps), torch.ones(T, B, dtype=torch.bool)
        objective(terms, mask, Weights(1.0, alpha, beta, 0.0, label), B, labels).total.backward()
        still = [name for name, part in model.named_children() if part_is_still(part)]
        assert still == idle_heads(model.config, loss)
        config = ModelConfig(system=system, hidden=64, mlp_dim=32, z_dim=8, parameter_budget=100_000, **head)
        chosen = sized(config, loss, 200)
        counts = parameter_counts(build(chosen, 200, 0))
        assert counts["total"] - sum(counts[name] for name in still) == pytest.approx(100_000, rel=0.02)
        assert sized_as(config, chosen, 200) == chosen
    assert sized_as(config, dataclasses.replace(chosen, hidden=chosen.hidden + 9), 200) is None


def part_is_still(part):
    gradients = [p.grad for p in part.parameters()]
    return bool(gradients) and not any(g is not None and g.any() for g in gradients)
