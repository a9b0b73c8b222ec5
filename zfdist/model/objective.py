"""Terms, mask and weights to the loss and the reported bound: the only place where weights multiply.

Equation (10), as a sum over time for each sequence and a mean over the sequences of the global batch:

    L = sum_t  log p(x_{t+1} | h_t)  +  alpha log p(b_t | z_t)  +  beta log p(x_t | b_t)  -  w_kl KL(q_t || p_t)

Shapes: T time, B batch. All in nats.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.terms import Terms
from zfdist.schedule import Weights

SUMS = ("elbo_nats", "log_px_nats", "kl_nats", "log_pb_nats", "log_px_backward_nats", "objective_nats")
"""Names of what is summed for the reports: the ELBO has weights of 1, no alpha, no beta and no free nats."""


class Loss(NamedTuple):
    """What an update minimises, and what is reported about it."""

    total: Tensor
    """Scalar to minimise: minus the weighted sum over this rank's real frames, divided by `num_sequences`."""
    sums: dict[str, Tensor]
    """Detached float64 scalars by the names of SUMS, summed over this rank's real frames."""
    elbo_B: Tensor
    """The ELBO of each row, detached, float64; 0 for a row without real frames."""


def objective(terms: Terms, mask_TB: Tensor, weights: Weights, num_sequences: int) -> Loss:
    """Return the loss of a batch, equation (10).

    `mask_TB` is true where a frame is real; whatever stands elsewhere, NaN included, counts nowhere.
    `num_sequences` (>= 1) is that of the global batch, so that ranks and micro-batches add up.
    A frame's KL below `weights.free_nats_per_frame` costs that much instead, in the objective only.
    """
    scored = (terms.log_px_TB, terms.kl_TB, terms.log_pb_TB, terms.log_px_backward_TB)
    log_px, kl, log_pb, log_px_backward = (torch.where(mask_TB, term, 0.0) for term in scored)
    charged_kl = torch.where(mask_TB, kl.clamp(min=weights.free_nats_per_frame), 0.0)
    weighed_TB = log_px + weights.alpha * log_pb + weights.beta * log_px_backward - weights.kl * charged_kl
    with torch.no_grad():
        px, kl_wide, pb, px_backward = (term.double() for term in (log_px, kl, log_pb, log_px_backward))
        elbo_TB = px - kl_wide
        summed = (elbo_TB, px, kl_wide, pb, px_backward, weighed_TB.double())
        sums = {name: term_TB.sum() for name, term_TB in zip(SUMS, summed, strict=True)}
    return Loss(-weighed_TB.sum() / num_sequences, sums, elbo_TB.sum(0))
