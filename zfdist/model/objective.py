"""Terms, mask and weights to the loss and the reported bound: the only place where weights multiply.

Equation (10), as a sum over time for each sequence and a mean over the sequences of the global batch:

    L = sum_t  log p(x_{t+1} | h_t)  +  alpha log p(b_t | z_t)  +  beta log p(x_t | b_t)  -  w_kl KL(q_t || p_t)

Beyond the paper, a system with a label head adds w_label log p(label | z_1 .. z_T) of each labelled sequence.

Shapes: T time, B batch, C classes. All in nats.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.terms import Terms
from zfdist.schedule import Weights

SUMS = ("elbo_nats", "log_px_nats", "kl_nats", "log_pb_nats", "log_px_backward_nats", "objective_nats")
"""Names of what is summed for the reports: the ELBO has weights of 1, no alpha, no beta and no free nats."""
LABEL_SUMS = ("log_label_nats", "labels_correct", "labels_known")
"""Names of what is summed besides where there is a label head: log-probability, correct guesses, labelled rows."""


class Loss(NamedTuple):
    """What an update minimises, and what is reported about it."""

    total: Tensor
    """Scalar to minimise: minus the weighted sum over this rank's real frames, divided by `num_sequences`."""
    sums: dict[str, Tensor]
    """Detached float64 scalars by the names of SUMS (and LABEL_SUMS), summed over this rank's real frames."""
    elbo_B: Tensor
    """The ELBO of each row, detached, float64; 0 for a row without real frames."""


class _Labels(NamedTuple):
    log_prob_B: Tensor
    correct_B: Tensor
    known_B: Tensor


def objective(
    terms: Terms, mask_TB: Tensor, weights: Weights, num_sequences: int, labels_B: Tensor | None = None
) -> Loss:
    """Return the loss of a batch, equation (10).

    `mask_TB` is true where a frame is real; whatever terms stand elsewhere, NaN included, count nowhere in the loss and
    get a gradient of exactly 0. Inside a network a NaN times that 0 is NaN again: padding itself must be finite.
    `num_sequences` (>= 1) is that of the global batch, so that ranks and micro-batches add up.
    A frame's KL below `weights.free_nats_per_frame` costs that much instead, in the objective only.
    `labels_B` (int64, -1 where unknown, None for all unknown) is what a label head should say.
    """
    scored = (terms.log_px_TB, terms.kl_TB, terms.log_pb_TB, terms.log_px_backward_TB)
    log_px, kl, log_pb, log_px_backward = (torch.where(mask_TB, term, 0.0) for term in scored)
    free_bits_kl = torch.where(mask_TB, kl.clamp(min=weights.free_nats_per_frame), 0.0)
    weighted_TB = log_px + weights.alpha * log_pb + weights.beta * log_px_backward - weights.kl * free_bits_kl
    weighted = weighted_TB.sum()
    with torch.no_grad():
        px, kl_wide, pb, px_backward = (term.double() for term in (log_px, kl, log_pb, log_px_backward))
        elbo_TB = px - kl_wide
        summed = (elbo_TB, px, kl_wide, pb, px_backward, weighted_TB.double())
        sums = {name: term_TB.sum() for name, term_TB in zip(SUMS, summed, strict=True)}
    if terms.label_logits_BC is not None:
        labels = _labels(terms.label_logits_BC, mask_TB, labels_B)
        label_term = weights.label * labels.log_prob_B.sum()
        weighted = weighted + label_term
        sums["objective_nats"] += label_term.detach()
        sums |= {name: term_B.detach().double().sum() for name, term_B in zip(LABEL_SUMS, labels, strict=True)}
    return Loss(-weighted / num_sequences, sums, elbo_TB.sum(0))


def _labels(logits_BC: Tensor, mask_TB: Tensor, labels_B: Tensor | None) -> _Labels:
    """Return log p(label), whether the likeliest class is the label, and whether there is one; 0 without a label."""
    labels_B = torch.full_like(logits_BC[:, 0], -1, dtype=torch.int64) if labels_B is None else labels_B
    known_B = (labels_B >= 0) & mask_TB.any(0)
    logits_BC = torch.where(known_B[:, None], logits_BC, 0.0)
    log_probs_BC = torch.log_softmax(logits_BC, dim=-1)
    log_prob_B = log_probs_BC.gather(1, labels_B.clamp(min=0)[:, None]).squeeze(1)
    correct_B = known_B & (logits_BC.argmax(-1) == labels_B)
    return _Labels(torch.where(known_B, log_prob_B, 0.0), correct_B, known_B)
