"""What changes with the optimizer step: weights of the loss and the learning rate, as pure functions.

Nothing here has state, so a resumed run needs no more than its step to go on with the same schedule.
"""

from typing import NamedTuple, assert_never

from zfdist.config import KLConfig, LossConfig, OptimConfig


class Weights(NamedTuple):
    """Weights of the terms of equation (10) at one step, and of the label head's."""

    kl: float
    alpha: float
    beta: float
    free_nats_per_frame: float
    label: float = 0.0


EVALUATION = Weights(kl=1.0, alpha=0.0, beta=0.0, free_nats_per_frame=0.0)
"""The weights of every reported bound: the ELBO itself."""


def weights(loss: LossConfig, step: int) -> Weights:
    """Return the weights of the update that follows `step` finished ones (`step` >= 0)."""
    return Weights(
        kl=kl_weight(loss.kl, step),
        alpha=loss.alpha * _ramp(step, loss.alpha_ramp_steps),
        beta=loss.beta * _ramp(step, loss.beta_ramp_steps),
        free_nats_per_frame=loss.kl.free_nats_per_frame,
        label=loss.label,
    )


def kl_weight(kl: KLConfig, step: int) -> float:
    """Return the weight of the KL term, in [0, 1]; the paper's annealing is linear from 0.2 by 5e-5.

    A further schedule is one more case here, and its name in `KLConfig.kind`.
    """
    match kl.kind:
        case "constant":
            return 1.0
        case "linear":
            return min(1.0, kl.start + kl.increment * step)
        case "cyclical":
            return min(1.0, kl.start + kl.increment * (step % kl.period_steps))
    assert_never(kl.kind)


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Return the step size of the update that follows `step` finished ones; the warm-up never gives 0."""
    return optim.learning_rate * _ramp(step + 1, optim.warmup_steps)


def _ramp(step: int, over_steps: int) -> float:
    return 1.0 if over_steps == 0 else min(1.0, step / over_steps)
