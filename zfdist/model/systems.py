"""The family of networks behind one front door: build one, size it to a budget, count its parameters.

Every system is a `Network`: `forward(x, y, lengths, eps) -> Terms`, `infer`, `reconstruct`, `generate`.
"""

import dataclasses
import importlib
import itertools
from collections.abc import Iterable

import torch
from torch import nn

from zfdist.config import ConfigError, LossConfig, ModelConfig
from zfdist.model.networks.network import Network
from zfdist.seeding import torch_seed

_BEYOND_ANY_BUDGET = 2**16  # hidden units


def network_of(config: ModelConfig) -> type[Network]:
    """Return the class of a config's system: the `Network` in the file of networks/ that has the system's name."""
    module = importlib.import_module(f"zfdist.model.networks.{config.system}")
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Network) and c is not Network]
    (network,) = classes
    return network


def build(config: ModelConfig, x_dim: int, seed: int) -> Network:
    """Return the network with initial weights drawn from `seed`; the global random state is left as it was.

    `x_dim` is the number of values of a frame, or of words of the vocabulary. Sizes are taken as they are: a
    parameter budget is spent by `sized`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        return network_of(config)(config, x_dim)


def sized(config: ModelConfig, loss: LossConfig, x_dim: int) -> ModelConfig:
    """Return the config with the sizes whose number of parameters comes nearest to its budget, which becomes 0.

    `hidden` is chosen and `mlp_dim` kept in proportion to it, all else stays; without a budget nothing changes. Heads
    that have no weight in the objective do not count, as they learn nothing.

    Raises:
        ConfigError: if the budget is less than what the smallest network has.
    """
    return _within_budget(config, x_dim, idle_heads(config, loss)) if config.parameter_budget else config


def sized_as(config: ModelConfig, recorded: ModelConfig, x_dim: int) -> ModelConfig | None:
    """Return the config with recorded sizes if its budget gives them, whichever heads count; None if it does not.

    For a run that goes on: it began when all heads counted, or a weight that was 0 is not any more.
    """
    heads = network_of(config).weight_of
    subsets = (idle for n in range(len(heads) + 1) for idle in itertools.combinations(heads, n))
    found = (_within_budget(config, x_dim, idle) for idle in subsets)
    return next((c for c in found if (c.hidden, c.mlp_dim) == (recorded.hidden, recorded.mlp_dim)), None)


def idle_heads(config: ModelConfig, loss: LossConfig) -> list[str]:
    """Return the names of the network's heads that have no weight in the objective, so that no update moves them."""
    weight_of = dict(network_of(config).weight_of)
    if not config.label_classes:
        weight_of.pop("label", None)
    return [head for head, weight in weight_of.items() if getattr(loss, weight) == 0.0]


def _within_budget(config: ModelConfig, x_dim: int, idle: Iterable[str]) -> ModelConfig:
    budget = config.parameter_budget
    low, high = 1, _BEYOND_ANY_BUDGET  # the largest network within the budget lies in [low, high)
    smallest = _total(_scaled(config, low), x_dim, idle)
    if smallest > budget:
        raise ConfigError(
            f"model.parameter_budget = {budget}: with its other sizes as they are, this network has at least "
            f"{smallest} parameters"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _total(_scaled(config, middle), x_dim, idle) <= budget else (low, middle)
    candidates = [_scaled(config, hidden) for hidden in (low, high)]
    return min(candidates, key=lambda candidate: abs(_total(candidate, x_dim, idle) - budget))


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part, by its name in the module, and "total" over all."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    return {name: count for name, count in counts.items() if count} | {"total": sum(counts.values())}


def description(network: Network, loss: LossConfig) -> list[str]:
    """Return what a network is as lines for people: its system, and a table of its parts and their parameters."""
    counts, idle = parameter_counts(network), idle_heads(network.config, loss)
    rows = [(f"{network.config.system}, {network.config.density} output", "parameters", "")]
    rows += [
        (f"  {name}", f"{count:,}", "  no weight in the objective" * (name in idle)) for name, count in counts.items()
    ]
    width, digits = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{width}}  {count:>{digits}}{remark}" for name, count, remark in rows]


def _scaled(config: ModelConfig, hidden: int) -> ModelConfig:
    mlp_dim = max(1, round(hidden * config.mlp_dim / config.hidden))
    return dataclasses.replace(config, hidden=hidden, mlp_dim=mlp_dim, parameter_budget=0)


def _total(config: ModelConfig, x_dim: int, idle: Iterable[str]) -> int:
    with torch.device("meta"):  # shapes without numbers
        counts = parameter_counts(network_of(config)(config, x_dim))
    return counts["total"] - sum(counts.get(head, 0) for head in idle)
