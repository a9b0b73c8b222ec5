"""What every system gives for a batch: the terms of its objective and bounds, per time step.

Shapes: T time, B batch.
"""

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The terms of equation (10), in nats, per time step: unweighted, unmasked, summed over dimensions only.

    A term that a system does not have is zero.
    """

    log_px_TB: Tensor  # log p(x_{t+1} | h_t)
    kl_TB: Tensor  # KL(q(z_t | h_{t-1}, b_t) || p(z_t | h_{t-1}))
    log_pb_TB: Tensor  # log p(b_t | z_t): alpha's term
    log_px_backward_TB: Tensor  # log p(x_t | b_t): beta's term
    log_ratio_TB: Tensor  # log p(z_t | h_{t-1}) - log q(z_t | h_{t-1}, b_t) at the z_t drawn: IWAE's; no gradient
