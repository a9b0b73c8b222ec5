"""The rows of the paper's tables and figure as settings of a recipe, and which row a run belongs to."""

import dataclasses
from typing import Any, NamedTuple

from zfdist.config import Config

WEIGHTS = (0.0, 0.0025, 0.005)
"""alpha = beta in Table 2."""
USUAL_ALPHA = 0.015
"""The middle of what the authors' TIMIT search tries; the paper prints none for speech and images."""
TINY: dict[str, Any] = {
    "model.hidden": 96, "model.z_dim": 24, "model.mlp_dim": 96, "data.global_batch": 8, "data.window_batches": 16,
    "optim.learning_rate": 3e-3, "loss.kl.increment": 4e-3, "train.steps": 400, "train.log_every": 20,
    "train.validate_every": 100, "checkpoint.every_steps": 200,
}  # fmt: skip
"""Sizes and lengths of `--scale tiny`: a few minutes a table on a CPU core or two, to see that all goes through."""

_PLAIN = {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.kl.kind": "constant"}
_GMM = {"model.density": "mixture"}
_SYSTEMS: dict[str, dict[str, Any]] = {
    "rnn": {"model.system": "rnn"},
    "storn": {"model.system": "storn"},
    "vrnn-i": {"model.system": "vrnn", "model.vrnn_features": True, "model.vrnn_prior": "standard"},
    "vrnn": {"model.system": "vrnn", "model.vrnn_features": True},  # as in the network whose numbers stand beside it
    "srnn": {"model.system": "srnn"},
    "zforcing": {"model.system": "zforcing"},
}


_BEYOND: dict[str, dict[str, Any]] = {
    "rnn": _SYSTEMS["rnn"],
    "lru": {"model.system": "lru"},
    "vrnn": _SYSTEMS["vrnn"],
    "srnn": _SYSTEMS["srnn"],
    "zforcing": _SYSTEMS["zforcing"],
    "zforcing-sees-z": _SYSTEMS["zforcing"] | {"model.output_sees_z": True},
}
"""Systems without latents and with them: what the latents give with an output that is autoregressive in the frame."""
_OUTPUTS = {"gauss": "gaussian", "ar": "autoregressive"}


class Row(NamedTuple):
    """A row: its key, what readers call it, and what of a recipe it changes."""

    key: str
    label: str
    values: dict[str, Any]


LABELS = {
    "rnn-gauss": "RNN-Gauss",
    "rnn-gmm": "RNN-GMM",
    "storn": "STORN",
    "vrnn-i-gauss": "VRNN-I-Gauss",
    "vrnn-gauss": "VRNN-Gauss",
    "vrnn-gmm": "VRNN-GMM",
    "srnn": "SRNN (smooth + res_q)",
    "zforcing": "Z-Forcing",
    "zforcing-kla": "Z-Forcing + kla",
    "zforcing-aux": "Z-Forcing + aux",
    "zforcing-kla-aux": "Z-Forcing + kla, aux",
    "rnn": "RNN",
    "vrnn-i": "VRNN-I",
    "vrnn": "VRNN",
}
_BEYOND_LABELS = {"lru": "LRU", "zforcing-sees-z": "Z-Forcing, output reads z"}
_OUTPUT_LABELS = {"gauss": "Gaussian", "ar": "autoregressive"}


def rows(table: str, base: Config, alpha: float) -> list[Row]:
    """Return what a table trains; `alpha` is the weight of both auxiliary costs where the paper prints none."""
    density = {"model.density": base.model.density}
    if table in ("table2", "table3"):
        weights = WEIGHTS if table == "table2" else WEIGHTS[-1:]
        return [
            Row(f"alpha-{w:g}", f"\u03b1 = \u03b2 = {w:g}", _PLAIN | density | _SYSTEMS["zforcing"] | _aux(w))
            for w in weights
        ]
    if table == "beyond":
        return [
            Row(
                f"{key}-{output}",
                f"{_BEYOND_LABELS.get(key) or LABELS[key]}, {_OUTPUT_LABELS[output]}",
                _PLAIN | {"model.output_sees_z": False} | values | {"model.density": _OUTPUTS[output]},
            )
            for key, values in _BEYOND.items()
            for output in _OUTPUTS
        ]
    annealed = {"loss.kl.kind": "linear"}
    family = [
        ("zforcing", {}),
        ("zforcing-kla", annealed),
        ("zforcing-aux", _aux(alpha)),
        ("zforcing-kla-aux", annealed | _aux(alpha)),
    ]
    ours = [Row(key, LABELS[key], _PLAIN | density | _SYSTEMS["zforcing"] | values) for key, values in family]
    if table == "figure2":
        return ours
    if base.model.density in ("gaussian", "mixture"):
        gauss = {"model.density": "gaussian"}
        others = {
            "rnn-gauss": _SYSTEMS["rnn"] | gauss, "rnn-gmm": _SYSTEMS["rnn"] | _GMM,
            "storn": _SYSTEMS["storn"] | gauss, "vrnn-i-gauss": _SYSTEMS["vrnn-i"] | gauss,
            "vrnn-gauss": _SYSTEMS["vrnn"] | gauss, "vrnn-gmm": _SYSTEMS["vrnn"] | _GMM,
            "srnn": _SYSTEMS["srnn"] | gauss,
        }  # fmt: skip
    else:
        others = {key: _SYSTEMS[key] | density for key in ("rnn", "storn", "vrnn", "srnn")}
    return [*(Row(key, LABELS[key], _PLAIN | values) for key, values in others.items()), *ours]


def key_of(table: str, config: Config) -> str | None:
    """Return the key of the row that a run belongs to; None if it is none of the table's."""
    model, loss = config.model, config.loss
    is_annealed = loss.kl.kind != "constant" and loss.kl.start < 1.0
    if table in ("table2", "table3"):
        is_one = model.system == "zforcing" and model.density == "categorical" and loss.alpha == loss.beta
        return f"alpha-{loss.alpha:g}" if is_one else None
    if table == "beyond":
        output = next((name for name, density in _OUTPUTS.items() if density == model.density), None)
        key = model.system + "-sees-z" * model.output_sees_z
        is_plain = not _has_latents(config) or (loss.alpha == loss.beta == 0 and not is_annealed)
        return f"{key}-{output}" if output and key in _BEYOND and is_plain else None
    if model.system == "zforcing":
        return "zforcing" + "-kla" * is_annealed + "-aux" * (loss.alpha > 0)
    if table == "figure2":
        return None
    name = model.system + "-i" * (model.system == "vrnn" and model.vrnn_prior == "standard")
    suffix = {"gaussian": "-gauss", "mixture": "-gmm", "autoregressive": "-ar"}.get(model.density, "")
    return next((key for key in (name + suffix, name) if key in LABELS), None)


def points(base: Config, chosen: list[Row], seeds: int, x_dim: int, budget: int | None) -> list[dict[str, Any]]:
    """Return the trials of a table: every row with every seed, all names in each.

    Systems are sized to `budget` parameters, or to those of zforcing with all its heads in the base's sizes; 0 takes
    sizes as they are.

    Raises:
        ConfigError: if a row's system or density is not there, or cannot have the size.
    """
    names = list(dict.fromkeys(name for row in chosen for name in row.values))
    flat = base.flat()
    full = [{name: row.values.get(name, flat[name]) for name in names} for row in chosen]
    if budget != 0:
        budget = budget or _size(base.with_values(_SYSTEMS["zforcing"]), x_dim)
        full = [point | _sizes(base.with_values(point), x_dim, budget) for point in full]
    first = base.train.seed
    return [point | {"train.seed": seed} for point in full for seed in range(first, first + seeds)]


def _aux(weight: float) -> dict[str, Any]:
    return {"loss.alpha": weight, "loss.beta": weight}


def _has_latents(config: Config) -> bool:
    from zfdist.model import systems

    return systems.network_of(config.model).has_latents


def _sizes(config: Config, x_dim: int, budget: int) -> dict[str, Any]:
    from zfdist.model import systems

    sized = systems.sized(dataclasses.replace(config.model, parameter_budget=budget), config.loss, x_dim)
    return {"model.hidden": sized.hidden, "model.mlp_dim": sized.mlp_dim}


def _size(config: Config, x_dim: int) -> int:
    import torch

    from zfdist.model import systems

    with torch.device("meta"):  # shapes without numbers
        return systems.parameter_counts(systems.build(config.model, x_dim, seed=0))["total"]
