"""What an implementation of a loop over time is given: for each of the two loops a tuple, whose names carry the shapes.

The loops are those of zfdist.model.recurrent.recurrence and of SRNN's chain of latents, .latent_chain, which give the
formulas.

Shapes: T time, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of a net, G = 4 H gates in the order o, i, f, u;
of the chain P = 2 M hidden units of both nets, and a dimension of 2: the prior's net, the posterior's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zfdist.model.kernels.arguments import gradients, prepared, rows
from zfdist.model.kernels.lstm_cell import GATES, State

Results = tuple[Tensor, Tensor, Tensor, Tensor]
"""h [T, B, H], z [T, B, Z], mu and v as [T, B, Q], and the last c [B, H]."""
ChainResults = tuple[Tensor, Tensor]
"""z [T, B, Z], and m, v and r, s as [T, 2, B, Q]."""


class Core(NamedTuple):
    """All that an implementation of the recurrence is given; an autograd function takes it field by field."""

    gx_TBG: Tensor
    """The projected input, with the bias of the gates."""
    qb_TBM: Tensor
    """The part of the posterior's hidden layer that does not read h."""
    eps_TBZ: Tensor
    """Standard normal noise; without a gradient but by `reference`."""
    h_BH: Tensor
    c_BH: Tensor
    w_h_GH: Tensor
    w_z_GZ: Tensor
    w_a_MH: Tensor
    w_q_QM: Tensor
    b_q_Q: Tensor
    bound: float
    """Clamps mu and v; 0 for no clamp."""
    operand: torch.dtype
    """The type that operands of matrix products are rounded to; all else is in the type of the weights."""

    def prepared(self) -> "Core":
        """Return it with all tensors as compiled code reads them, or raise as zfdist.model.kernels.arguments says."""
        named = self._asdict()
        data = {name: named[name] for name in self._fields[:5]}
        weights = {name: named[name] for name in self._fields[5:10]}
        multiples = {"G": (GATES, "H"), "Q": (2, "Z")}
        ready = prepared("recurrence", data, weights, multiples=multiples)
        return Core._make((*ready, self.bound, self.operand))


class ChainCore(NamedTuple):
    """All that an implementation of SRNN's chain is given; an autograd function takes it field by field."""

    pq_TBP: Tensor
    """The parts of both hidden layers that do not read z."""
    eps_TBZ: Tensor
    """Standard normal noise; without a gradient but by `reference`."""
    z_BZ: Tensor
    w_z_PZ: Tensor
    w_q_2QM: Tensor
    b_q_2Q: Tensor
    bound: float
    """Clamps means and log-variances; 0 for no clamp."""
    operand: torch.dtype
    """The type that operands of products with z are rounded to; all else is in the type of the weights."""

    def prepared(self) -> "ChainCore":
        """Return it with all tensors as compiled code reads them, or raise as zfdist.model.kernels.arguments says."""
        named = self._asdict()
        data = {name: named[name] for name in self._fields[:3]}
        weights = {name: named[name] for name in self._fields[3:6]}
        multiples = {"P": (2, "M"), "Q": (2, "Z")}
        ready = prepared("chain of latents", data, weights, multiples=multiples)
        return ChainCore._make((*ready, self.bound, self.operand))


def core_gradients(h_SBH: Tensor, z_TBZ: Tensor, q_TBQ: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of `Results` as compiled code reads them, for S = T + 1 states and other results."""
    results = {"h_TBH": h_SBH[1:], "z_TBZ": z_TBZ, "q_TBQ": q_TBQ, "c_BH": h_SBH[0]}
    return gradients("recurrence", results, given)


def chain_gradients(z_TBZ: Tensor, q_T2BQ: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of `ChainResults` as compiled code reads them."""
    return gradients("chain of latents", {"z_TBZ": z_TBZ, "q_T2BQ": q_T2BQ}, given)


def step_arguments(
    gx_BG: Tensor, z_BZ: Tensor | None, state: State, hidden: int, z_dim: int, like: Tensor
) -> list[Tensor]:
    """Return gx, z, h and c of one step as compiled code reads them; a single row of one stands for all B of others."""
    z_BZ = gx_BG[:, :0] if z_BZ is None else z_BZ
    inputs = (("gx_BG", gx_BG, GATES * hidden), ("z_BZ", z_BZ, z_dim))
    before = (("h_BH", state.h_BH, hidden), ("c_BH", state.c_BH, hidden))
    return rows("step of an LSTM", (*inputs, *before), like.dtype, like.device)
