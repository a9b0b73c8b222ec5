"""The sequential core: the one loop over time that a stochastic recurrent network cannot avoid.

What does not depend on the state stays outside: the input projection `gx` (with the LSTM's bias) and the part `qb`
of the posterior's hidden layer that reads b_t come in ready for all steps; prior, auxiliary net and outputs are
computed afterwards on the stacked results. Inside, for t = 1 .. T, equations (7) and (4) of the paper:

    a_t           = clip(lrelu(h_{t-1} Wa' + qb_t))          hidden layer of the posterior f_q
    mu_t, v_t     = clamp(a_t Wq' + bq)                      mean and log-variance of q(z_t | h_{t-1}, b_t)
    z_t           = mu_t + exp(v_t / 2) * eps_t
    o, i, f, u    = gx_t + h_{t-1} Wh' + z_t Wz'             sigmoid for o, i, f; tanh for u
    c_t           = f * c_{t-1} + i * u,   h_t = o * tanh(c_t)

`reference` is this text under autograd: the definition. All other implementations are one autograd function with the
same arguments and results, and the same numbers to rounding: `bptt` (kernels.manual_backward) writes the backward pass
by hand; `native` (kernels.cpp_recurrence) is that in C++ for a CPU; `graph` and `triton` (kernels.cuda_graphs,
kernels.triton_recurrence) are for a GPU. `LOOPS` says where they are, and `choose` which is used where nothing was
measured. Under autocast only the operands of matrix products are rounded to 16 bits; sums, states, mu and v stay
float32.

Shapes: as in zfdist.model.kernels.core_arguments, and P = G + M all that is computed from h_{t-1}.
"""

import functools
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zfdist.model.kernels import cpp_library, cpp_lstm_step, cuda_graphs, triton_recurrence
from zfdist.model.kernels.core_arguments import Core, Results
from zfdist.model.kernels.lstm_cell import (
    GATES,
    State,
    cell,
    clamp_latent,
    clipped_leaky_relu,
    no_autocast,
    operand_dtype,
)
from zfdist.model.kernels.mixed_precision import linear, widen
from zfdist.profile import span

Implementation = Literal["auto", "measured", "reference", "bptt", "native", "graph", "triton"]

LOOPS: Mapping[str, str] = {
    "reference": f"{__name__}:reference",
    "bptt": "zfdist.model.kernels.manual_backward:unroll",
    "native": "zfdist.model.kernels.cpp_recurrence:unroll",
    "graph": "zfdist.model.kernels.cuda_graphs:unroll",
    "triton": "zfdist.model.kernels.cuda_graphs:unroll_fused",  # alone it would wait for Python to launch it
}
"""The implementations by name, and where each is: functions that are called like `reference` and give the same."""

UNDECIDED = ("auto", "measured")
"""What may be asked for that names no implementation."""


class Unrolled(NamedTuple):
    """What the loop gives back, for all steps, and the state after the last."""

    h_TBH: Tensor
    z_TBZ: Tensor
    mu_TBZ: Tensor
    logvar_TBZ: Tensor
    state: State


def reference(core: Core) -> Results:
    """Run the loop by autograd."""
    core = core.prepared()
    h_TBH, z_TBZ, q_TBQ, operand = [], [], [], core.operand
    w_p_PH, gates, state = torch.cat([core.w_h_GH, core.w_a_MH]), core.w_h_GH.shape[0], State(core.h_BH, core.c_BH)
    for gx_BG, qb_BM, eps_BZ in zip(core.gx_TBG, core.qb_TBM, core.eps_TBZ, strict=True):
        p_BP = linear(state.h_BH, w_p_PH, operand)
        a_BM = clipped_leaky_relu(p_BP[:, gates:] + qb_BM)
        q_BQ = clamp_latent(linear(a_BM, core.w_q_QM, operand) + core.b_q_Q, core.bound)
        mu_BZ, logvar_BZ = q_BQ.chunk(2, dim=-1)
        z_BZ = mu_BZ + torch.exp(0.5 * logvar_BZ) * eps_BZ
        state = cell(gx_BG + p_BP[:, :gates] + linear(z_BZ, core.w_z_GZ, operand), state.c_BH)
        h_TBH.append(state.h_BH)
        z_TBZ.append(z_BZ)
        q_TBQ.append(q_BQ)
    return torch.stack(h_TBH), torch.stack(z_TBZ), torch.stack(q_TBQ), state.c_BH


def serves(name: str, device: torch.device, wide: torch.dtype, operand: torch.dtype) -> bool:
    """Return whether an implementation runs on a device, with sums and states of type `wide` and such operands."""
    match name:
        case "native":
            return not cpp_library.unsupported_reason(device, wide, operand)
        case "graph":
            return cuda_graphs.is_supported(device)
        case "triton":
            return triton_recurrence.is_supported(device, wide, operand)
        case _:
            return True


def choose(wanted: str, device: torch.device, wide: torch.dtype, operand: torch.dtype) -> str:
    """Return what `wanted` means where nothing was measured.

    That is itself, or where it names none or one that does not serve (as in a run of a GPU that is evaluated on a CPU)
    `native` where that serves, else `bptt`, which does everywhere.
    """
    if wanted in LOOPS and serves(wanted, device, wide, operand):
        return wanted
    return "native" if serves("native", device, wide, operand) else "bptt"


def describe(asked: str, chosen: str, like: Tensor, operand: torch.dtype) -> str:
    """Return what was chosen for `like`, and why that is not `native` where it might have been."""
    if like.device.type != "cpu" or chosen != "bptt" or asked not in (*UNDECIDED, "native"):
        return chosen
    reason = cpp_library.unsupported_reason(like.device, like.dtype, operand)
    return f"bptt (native: {reason})" if reason else "bptt"


@functools.cache
def found(where: str) -> Callable[[Any], tuple[Tensor, ...]]:
    """Return the function that "module:name" tells; imports it."""
    function: Callable[[Any], tuple[Tensor, ...]] = pkgutil.resolve_name(where)
    return function


class Recurrence(nn.Module):
    """The weights inside the loop, and the loop; one module, so that ZeRO-3 gathers it once per call."""

    def __init__(
        self, hidden: int, z_dim: int, mlp_dim: int, latent_clamp: float, implementation: Implementation = "auto"
    ) -> None:
        super().__init__()
        self.latent_clamp = latent_clamp
        self.implementation = implementation
        self.fastest = "auto"
        """What was measured to be so, if it was: `zfdist.loop_choice` sets it."""
        self.w_h_GH = nn.Parameter(torch.empty(GATES * hidden, hidden))
        self.w_z_GZ = nn.Parameter(torch.empty(GATES * hidden, z_dim))
        self.w_a_MH = nn.Parameter(torch.empty(mlp_dim, hidden))
        self.w_q_QM = nn.Parameter(torch.empty(2 * z_dim, mlp_dim))
        self.b_q_Q = nn.Parameter(torch.zeros(2 * z_dim))
        for gate_HH in self.w_h_GH.detach().chunk(GATES):
            nn.init.orthogonal_(gate_HH)
        for weight, fan_in in ((self.w_z_GZ, hidden), (self.w_a_MH, 2 * hidden), (self.w_q_QM, mlp_dim)):
            nn.init.uniform_(weight, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))

    def forward(self, gx_TBG: Tensor, qb_TBM: Tensor, eps_TBZ: Tensor, state: State) -> Unrolled:
        """Run all steps with z from the posterior.

        Differentiable in `gx_TBG`, `qb_TBM`, `state` and the weights; in `eps_TBZ`, and twice, by `reference` only.
        """
        narrow = operand_dtype(self.w_h_GH)
        with no_autocast(gx_TBG), span("forward core"):
            weights = (self.w_h_GH, self.w_z_GZ, self.w_a_MH, self.w_q_QM, self.b_q_Q)
            core = Core(gx_TBG, qb_TBM, eps_TBZ, *state, *weights, self.latent_clamp, narrow)
            h_TBH, z_TBZ, q_TBQ, c_BH = found(LOOPS[self._serving(eps_TBZ, narrow)])(core)
        mu_TBZ, logvar_TBZ = q_TBQ.chunk(2, dim=-1)
        return Unrolled(h_TBH, z_TBZ, mu_TBZ, logvar_TBZ, State(h_TBH[-1], c_BH))

    def step(self, gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        """Run the cell once with a given z: the generative path, where z comes from the prior.

        Reads the weights outside `forward`: for a whole module, not for one that ZeRO-3 has partitioned.
        """
        narrow = operand_dtype(widen(gx_BG))
        with no_autocast(gx_BG):
            g_BG = widen(gx_BG) + linear(state.h_BH, self.w_h_GH, narrow) + linear(z_BZ, self.w_z_GZ, narrow)
            return cell(g_BG, state.c_BH)

    def stepping(self, steps: int) -> Callable[[Tensor, Tensor, State], State]:
        """Return `step` for a loop of so many: by the C++ of `native` or the kernels of `triton` where these serve."""
        weight, operand = self.w_h_GH, operand_dtype(self.w_h_GH)
        serving = choose(self._wanted, weight.device, weight.dtype, operand)
        if serving == "native" and cpp_lstm_step.is_worthwhile(steps):
            return cpp_lstm_step.Stepper(weight, self.w_z_GZ, cpp_lstm_step.OURS)
        if serving == "triton" and not torch.is_grad_enabled():
            return triton_recurrence.stepping(weight, self.w_z_GZ, operand)
        return self.step

    def describe(self, operand: torch.dtype) -> str:
        """Return what training on this machine takes, and why that is not `native` where it might have been."""
        like = self.b_q_Q
        return describe(self.implementation, choose(self._wanted, like.device, like.dtype, operand), like, operand)

    @property
    def _wanted(self) -> str:
        return self.fastest if self.implementation in UNDECIDED else self.implementation

    def _serving(self, eps_TBZ: Tensor, operand: torch.dtype) -> str:
        undecided = self.implementation in UNDECIDED
        if undecided and eps_TBZ.requires_grad:
            return "reference"  # the only one that is differentiable in the noise
        chosen = choose(self._wanted, self.w_h_GH.device, self.w_h_GH.dtype, operand)
        # Without a gradient the plain loop keeps nothing and saves the memory of what it would save.
        spares = undecided and chosen == "bptt" and not torch.is_grad_enabled()
        return "reference" if spares else chosen
