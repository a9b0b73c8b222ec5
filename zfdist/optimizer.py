"""The optimizer of all runs, torch's Adam, made without the import of torch's compiler."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from zfdist.config import OptimConfig


def adam_settings(optim: OptimConfig) -> dict[str, Any]:
    """Return the arguments of torch.optim.Adam: the paper's, without weight decay; fused, one pass over the weights."""
    return {
        "lr": optim.learning_rate,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.adam_eps,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
        "fused": True,
    }


def adam(settings: dict[str, Any], parameters: Any) -> torch.optim.Adam:
    """Make torch's Adam, whose methods import torch.compile at their first call, for 2 s, so as to be spared by it.

    Not here: most look for a mark first (`torch._disable_dynamo`); a step does not, so it is taken from below its
    wrappers, which also turn off gradients.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)
    made = torch.optim.Adam(parameters, **settings)
    made.step = torch.no_grad()(functools.partial(inspect.unwrap(torch.optim.Adam.step), made))  # type: ignore[method-assign]
    return made


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Let torch.compile do nothing: it imports for 2 s, and DeepSpeed calls it for an optimizer that is not ours."""
    before = torch.compile

    def compile(function: Any = None, **_: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    torch.compile = compile  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before
