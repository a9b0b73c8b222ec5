"""What every system gives: the terms of its objective and bounds, its latents, and what it draws.

Shapes: T time, B batch, Z latent, X values of a frame, C classes. Tokens have no X: they are int64 [T, B].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zfdist.model.distributions import Gaussian, log_ratio


class Terms(NamedTuple):
    """The terms of equation (10), in nats, per time step: unweighted, unmasked, summed over dimensions only.

    A term that a system does not have is zero.
    """

    log_px_TB: Tensor  # log p(x_{t+1} | h_t)
    kl_TB: Tensor  # KL(q(z_t | h_{t-1}, b_t) || p(z_t | h_{t-1}))
    log_pb_TB: Tensor  # log p(b_t | z_t): alpha's term
    log_px_backward_TB: Tensor  # log p(x_t | b_t): beta's term
    log_ratio_TB: Tensor  # log p(z_t | h_{t-1}) - log q(z_t | h_{t-1}, b_t) at the z_t drawn: IWAE's; no gradient
    label_logits_BC: Tensor | None = None  # of the label head, where there is one


class Inferred(NamedTuple):
    """Latents under the posterior, and the state that they lead to."""

    z_TBZ: Tensor
    mu_TBZ: Tensor
    features_TBH: Tensor  # what the output net reads
    state: Any  # after the last step, for `generate` to go on from


class Generated(NamedTuple):
    """Observations drawn from the model, and all that is needed to go on from the last of them."""

    x_TBX: Tensor
    state: Any


def exact_terms(log_px_TB: Tensor) -> Terms:
    """Return the terms of a system without latents: the log-likelihood, and zeros."""
    zeros_TB = torch.zeros_like(log_px_TB)
    return Terms(log_px_TB, zeros_TB, zeros_TB, zeros_TB, zeros_TB)


def latent_terms(
    log_px_TB: Tensor,
    prior: Gaussian,
    posterior: Gaussian,
    z_TBZ: Tensor,
    *,
    log_pb_TB: Tensor | None = None,
    log_px_backward_TB: Tensor | None = None,
    label_logits_BC: Tensor | None = None,
) -> Terms:
    """Return the terms of a system with latents; what is left out is zero."""
    zeros_TB = torch.zeros_like(log_px_TB)
    return Terms(
        log_px_TB=log_px_TB,
        kl_TB=posterior.kl(prior),
        log_pb_TB=zeros_TB if log_pb_TB is None else log_pb_TB,
        log_px_backward_TB=zeros_TB if log_px_backward_TB is None else log_px_backward_TB,
        log_ratio_TB=log_ratio(prior, posterior, z_TBZ),
        label_logits_BC=label_logits_BC,
    )
