"""The recurrence with fused kernels between its products: 6 products and 6 kernels a step, forward and backward.

The contract, letters and results are those of `manual_backward`; what differs is that all that stands between two
products of a step is one kernel (of `triton_kernels`), which also rounds the operand of the next product, and that
nothing is computed for all steps beforehand. `cuda_graphs` may record these sweeps as it records those of
`manual_backward`.

Shapes: as in zfdist.model.kernels.core_arguments, and S = T + 1, N = T * B, P = G + M: what is computed from h_{t-1}.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.arguments import prepared
from zfdist.model.kernels.core_arguments import Core, Results, core_gradients, step_arguments
from zfdist.model.kernels.lstm_cell import CLIP, GATES, SLOPE, State, no_autocast
from zfdist.model.kernels.mixed_precision import product
from zfdist.profile import spanned

_BLOCK = 256  # columns of a program: at B 32 and H 1024, a program for each multiprocessor
_SERVED = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16))


def is_supported(device: torch.device, wide: torch.dtype, operand: torch.dtype) -> bool:
    """Return whether these kernels run there, and on numbers of these types."""
    on_gpu = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return on_gpu and ((wide, operand) in _SERVED or wide == operand == torch.float64)


def unroll(core: Core) -> Results:
    """Run the loop, as `reference` of zfdist.model.recurrent.recurrence; differentiable once."""
    results: Results = TritonBPTT.apply(*core.prepared())  # type: ignore[no-untyped-call]
    return results


def stepping(w_h_GH: Tensor, w_z_GZ: Tensor, operand: torch.dtype) -> Callable[[Tensor, Tensor, State], State]:
    """Return the cell for one step after another with given z, to generate: from gx [B, G], z [B, Z] and a state."""
    from zfdist.model.kernels import triton_kernels as kernels

    weights = {"w_h_GH": w_h_GH, "w_z_GZ": w_z_GZ}
    w_h_GH, w_z_GZ = prepared("step of an LSTM", {}, weights, multiples={"G": (GATES, "H")})
    w_h_HG, w_z_ZG, like = w_h_GH.to(operand).t(), w_z_GZ.to(operand).t(), w_h_GH.new_empty(0)
    hidden, z_dim, wide = w_h_GH.shape[1], w_z_GZ.shape[1], w_h_GH.dtype

    def step(gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        gx_BG, z_BZ, h_BH, c_BH = step_arguments(gx_BG, z_BZ, state, hidden, z_dim, like)
        batch, from_h_BG = len(gx_BG), product(h_BH.to(operand), w_h_HG, wide)
        from_z_BG = product(z_BZ.to(operand), w_z_ZG, wide)
        following, act_BG = State(torch.empty_like(h_BH), torch.empty_like(c_BH)), torch.empty_like(from_h_BG)
        given, (h_BH, c_BH) = (from_h_BG, gx_BG, from_z_BG, c_BH), following
        _over(kernels.cell, batch, hidden, narrow=False)(*given, act_BG, c_BH, h_BH, h_BH, hidden, GATES * hidden)
        return following

    return step


class _SavedActivations(NamedTuple):
    """All steps of the forward pass, as the backward pass needs them."""

    act_TBG: Tensor  # gates after their activations
    h_SBH: Tensor
    c_SBH: Tensor
    a_TBM: Tensor
    q_TBQ: Tensor
    noise_TBZ: Tensor  # exp(v/2) * eps
    z_TBZ: Tensor


class _Operands(NamedTuple):
    """What products read, in their type: tensors of their own if that is narrower, else the same memory."""

    h_SBH: Tensor
    a_TBM: Tensor
    z_TBZ: Tensor
    w_p_PH: Tensor
    w_z_GZ: Tensor
    w_q_QM: Tensor


class TritonBPTT(torch.autograd.Function):
    """The loop of zfdist.model.recurrent.recurrence as one node of the graph; differentiable once."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Results:
        """Run the loop on the fields of a `Core`."""
        core = Core(*given)
        acts, operand = _allocate(core), core.operand
        operands = _Operands(
            h_SBH=_narrow(acts.h_SBH, operand),
            a_TBM=_narrow(acts.a_TBM, operand),
            z_TBZ=_narrow(acts.z_TBZ, operand),
            w_p_PH=torch.cat([core.w_h_GH, core.w_a_MH]).to(operand),
            w_z_GZ=core.w_z_GZ.to(operand),
            w_q_QM=core.w_q_QM.to(operand),
        )
        _forward_sweep(acts, operands, core)
        ctx.save_for_backward(*acts, *operands)
        ctx.bound = core.bound
        return acts.h_SBH[1:], acts.z_TBZ, acts.q_TBQ, acts.c_SBH[-1]

    @staticmethod
    @once_differentiable
    @spanned("backward core")
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `forward`'s tensors; the noise gets none."""
        saved = ctx.saved_tensors
        acts, operands = (
            _SavedActivations(*saved[: len(_SavedActivations._fields)]),
            _Operands(*saved[len(_SavedActivations._fields) :]),
        )
        gates, operand = acts.act_TBG.shape[2], operands.w_p_PH.dtype
        steps, batch, mlp_dim = acts.a_TBM.shape
        *direct, dc_BH = core_gradients(acts.h_SBH, acts.z_TBZ, acts.q_TBQ, given)
        d_TBP, dq_TBQ = dc_BH.new_empty(steps, batch, gates + mlp_dim), torch.empty_like(acts.q_TBQ)
        narrow_d_TBP, narrow_dq_TBQ = _narrow(d_TBP, operand), _narrow(dq_TBQ, operand)
        with no_autocast(dc_BH):
            outputs = (d_TBP, narrow_d_TBP, dq_TBQ, narrow_dq_TBQ)
            dh_BH, dc_BH = _backward_sweep(acts, operands, direct, outputs, dc_BH, ctx.bound)
            d_NP, dq_NQ, wide = narrow_d_TBP.flatten(0, 1), narrow_dq_TBQ.flatten(0, 1), d_TBP.dtype
            dw_p_PH = product(d_NP.t(), operands.h_SBH[:-1].flatten(0, 1), wide)
            dw_z_GZ = product(d_NP[:, :gates].t(), operands.z_TBZ.flatten(0, 1), wide)
            dw_q_QM = product(dq_NQ.t(), operands.a_TBM.flatten(0, 1), wide)
        dweights = (dw_p_PH[:gates], dw_z_GZ, dw_p_PH[gates:], dw_q_QM, dq_TBQ.sum((0, 1)))
        return d_TBP[..., :gates], d_TBP[..., gates:], None, dh_BH, dc_BH, *dweights, None, None


def _narrow(wide: Tensor, operand: torch.dtype) -> Tensor:
    """Return a tensor for the rounded copy of `wide`, or itself if there is nothing to round."""
    return wide if wide.dtype == operand else torch.empty_like(wide, dtype=operand)


def _allocate(core: Core) -> _SavedActivations:
    (steps, batch, z_dim), hidden, empty = core.eps_TBZ.shape, core.h_BH.shape[1], core.h_BH.new_empty
    acts = _SavedActivations(
        act_TBG=torch.empty_like(core.gx_TBG),
        h_SBH=empty(steps + 1, batch, hidden),
        c_SBH=empty(steps + 1, batch, hidden),
        a_TBM=torch.empty_like(core.qb_TBM),
        q_TBQ=empty(steps, batch, 2 * z_dim),
        noise_TBZ=torch.empty_like(core.eps_TBZ),
        z_TBZ=torch.empty_like(core.eps_TBZ),
    )
    acts.h_SBH[0], acts.c_SBH[0] = core.h_BH, core.c_BH
    return acts


def _over(kernel: Any, batch: int, columns: int, narrow: bool) -> Callable[..., None]:
    """Return the launch of a kernel on `batch` rows of so many columns."""
    launch = kernel[(batch, -(-columns // _BLOCK))]

    def run(*arguments: Tensor | int, **constants: float) -> None:
        grain = math.gcd(16, *(a for a in arguments if isinstance(a, int)))
        launch(*arguments, **constants, NARROW=narrow, GRAIN=grain, BLOCK=_BLOCK)

    return run


def _forward_sweep(acts: _SavedActivations, operands: _Operands, core: Core) -> None:
    from zfdist.model.kernels import triton_kernels as kernels

    batch, gates = core.gx_TBG.shape[1:]
    hidden, mlp_dim, z_dim = gates // GATES, core.qb_TBM.shape[2], core.eps_TBZ.shape[2]
    wide, empty = core.gx_TBG.dtype, core.gx_TBG.new_empty
    narrow = operands.w_p_PH.dtype != wide
    p_BP, g_BG, r_BQ = empty(batch, gates + mlp_dim), empty(batch, gates), empty(batch, 2 * z_dim)
    hidden_layer = _over(kernels.hidden_layer, batch, mlp_dim, narrow)
    latent, cell = _over(kernels.latent, batch, z_dim, narrow), _over(kernels.cell, batch, hidden, narrow)
    if narrow:
        operands.h_SBH[0] = acts.h_SBH[0]
    h_S, c_S, narrow_h_S = acts.h_SBH.unbind(), acts.c_SBH.unbind(), operands.h_SBH.unbind()
    rows = zip(
        core.gx_TBG.unbind(), core.qb_TBM.unbind(), core.eps_TBZ.unbind(), acts.act_TBG.unbind(), acts.a_TBM.unbind(),
        operands.a_TBM.unbind(), acts.q_TBQ.unbind(), acts.noise_TBZ.unbind(), acts.z_TBZ.unbind(),
        operands.z_TBZ.unbind(), strict=True,
    )  # fmt: skip
    for t, (gx, qb, eps, act, a, narrow_a, q, noise, z, narrow_z) in enumerate(rows):
        p_BP = product(narrow_h_S[t], operands.w_p_PH.t(), wide, p_BP)
        hidden_layer(p_BP, qb, a, narrow_a, gates, mlp_dim, SLOPE=SLOPE, CLIP=CLIP)
        r_BQ = product(narrow_a, operands.w_q_QM.t(), wide, r_BQ)
        latent(r_BQ, core.b_q_Q, eps, q, noise, z, narrow_z, z_dim, BOUND=core.bound)
        g_BG = product(narrow_z, operands.w_z_GZ.t(), wide, g_BG)
        cell(p_BP, gx, g_BG, c_S[t], act, c_S[t + 1], h_S[t + 1], narrow_h_S[t + 1], hidden, gates + mlp_dim)


def _backward_sweep(
    acts: _SavedActivations, operands: _Operands, direct: Sequence[Tensor],
    outputs: tuple[Tensor, Tensor, Tensor, Tensor], dc_BH: Tensor, bound: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recursion from the last step to the first; fill `outputs` and return the gradient of the first state."""
    from zfdist.model.kernels import triton_kernels as kernels

    d_T, narrow_d_T, dq_T, narrow_dq_T = (output.unbind() for output in outputs)
    dh_T, dz_T, direct_T = (gradient.unbind() for gradient in direct)
    act_T, c_S, a_T = acts.act_TBG.unbind(), acts.c_SBH.unbind(), acts.a_TBM.unbind()
    q_T, noise_T = acts.q_TBQ.unbind(), acts.noise_TBZ.unbind()
    batch, gates = act_T[0].shape
    hidden, mlp_dim, z_dim = gates // GATES, a_T[0].shape[1], noise_T[0].shape[1]
    wide, empty = dc_BH.dtype, dc_BH.new_empty
    narrow = operands.w_p_PH.dtype != wide
    carried_dh_BH, dc_BH = dc_BH.new_zeros(batch, hidden), dc_BH.clone()
    dz_BZ, da_BM = empty(batch, z_dim), empty(batch, mlp_dim)
    cell = _over(kernels.cell_backward, batch, hidden, narrow)
    latent = _over(kernels.latent_backward, batch, z_dim, narrow)
    hidden_layer = _over(kernels.hidden_layer_backward, batch, mlp_dim, narrow)
    for t in range(len(d_T) - 1, -1, -1):
        d, narrow_d = d_T[t], narrow_d_T[t]
        cell(carried_dh_BH, dh_T[t], dc_BH, act_T[t], c_S[t], c_S[t + 1], d, narrow_d, hidden, gates + mlp_dim)
        dz_BZ = product(narrow_d[:, :gates], operands.w_z_GZ, wide, dz_BZ)
        latent(dz_BZ, dz_T[t], direct_T[t], q_T[t], noise_T[t], dq_T[t], narrow_dq_T[t], z_dim, BOUND=bound)
        da_BM = product(narrow_dq_T[t], operands.w_q_QM, wide, da_BM)
        hidden_layer(da_BM, a_T[t], d, narrow_d, gates, mlp_dim, SLOPE=SLOPE, CLIP=CLIP)
        carried_dh_BH = product(narrow_d, operands.w_p_PH, wide, carried_dh_BH)
    return carried_dh_BH, dc_BH
