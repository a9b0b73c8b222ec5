"""The family of networks behind one front door: build one, size it to a budget, count its parameters.

Every system is called alike: `forward(x, y, lengths, eps) -> Terms`, `infer`, `reconstruct`, `generate`.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import torch
from torch import nn

from zfdist.config import ConfigError, LossConfig, ModelConfig
from zfdist.model.networks.rnn import Rnn
from zfdist.model.networks.srnn import Srnn
from zfdist.model.networks.storn import Storn
from zfdist.model.networks.vrnn import Vrnn
from zfdist.model.networks.zforcing import ZForcing
from zfdist.seeding import torch_seed

System = ZForcing | Storn | Vrnn | Srnn | Rnn

_BEYOND_ANY_BUDGET = 2**16  # hidden units
_WEIGHT_OF = {"aux": "alpha", "backward_output": "beta", "label": "label"}  # heads, and their fields of LossConfig


def build(config: ModelConfig, x_dim: int, seed: int) -> System:
    """Return the network with initial weights drawn from `seed`; the global random state is left as it was.

    `x_dim` is the number of values of a frame, or of words of the vocabulary. Sizes are taken as they are: a
    parameter budget is spent by `sized`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        return _make(config, x_dim)


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
    subsets = (idle for n in range(len(_WEIGHT_OF) + 1) for idle in itertools.combinations(_WEIGHT_OF, n))
    found = (_within_budget(config, x_dim, idle) for idle in subsets)
    return next((c for c in found if (c.hidden, c.mlp_dim) == (recorded.hidden, recorded.mlp_dim)), None)


def idle_heads(config: ModelConfig, loss: LossConfig) -> list[str]:
    """Return the names of the network's heads that have no weight in the objective, so that no update moves them."""
    has = {"aux": config.system == "zforcing", "backward_output": config.system == "zforcing"}
    has["label"] = config.label_classes > 0
    return [head for head, weight in _WEIGHT_OF.items() if has[head] and getattr(loss, weight) == 0.0]


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


def _make(config: ModelConfig, x_dim: int) -> System:
    match config.system:
        case "zforcing":
            return ZForcing(config, x_dim)
        case "storn":
            return Storn(config, x_dim)
        case "vrnn":
            return Vrnn(config, x_dim)
        case "srnn":
            return Srnn(config, x_dim)
        case "rnn":
            return Rnn(config, x_dim)


def _scaled(config: ModelConfig, hidden: int) -> ModelConfig:
    mlp_dim = max(1, round(hidden * config.mlp_dim / config.hidden))
    return dataclasses.replace(config, hidden=hidden, mlp_dim=mlp_dim, parameter_budget=0)


def _total(config: ModelConfig, x_dim: int, idle: Iterable[str]) -> int:
    with torch.device("meta"):  # shapes without numbers
        counts = parameter_counts(_make(config, x_dim))
    return counts["total"] - sum(counts.get(head, 0) for head in idle)
