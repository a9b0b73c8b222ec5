"""The recurrence in which z conditions a layer norm instead of being an input: a switch of Z-Forcing's authors' code.

As zfdist.model.recurrent.recurrence, but with

    m_t           = clip(lrelu(z_t Wm' + bm)) Wn' + bn       gain and shift, clipped to [-3, 3]
    o, i, f, u    = gx_t + (1 + gain_t) * norm(h_{t-1} Wh') + shift_t

where norm() takes mean and variance over all gates of a row. By autograd only.

Shapes: T time, B batch, H hidden, Z latent, M hidden units of the nets, G = 4 H gates in the order o, i, f, u.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from zfdist.model.kernels.lstm_cell import CLIP, GATES, State, cell, clipped_leaky_relu, no_autocast
from zfdist.model.kernels.mixed_precision import WideLinear, widen
from zfdist.model.recurrent.stepwise import StepwiseRecurrence


class LayerNormRecurrence(StepwiseRecurrence):
    """The weights inside the loop, and its step."""

    def __init__(self, hidden: int, z_dim: int, mlp_dim: int, latent_clamp: float) -> None:
        super().__init__()
        self.latent_clamp = latent_clamp
        self.recurrent = WideLinear(hidden, GATES * hidden, bias=False)
        self.posterior_h = WideLinear(hidden, mlp_dim, bias=False)
        self.posterior = nn.Linear(mlp_dim, 2 * z_dim)
        self.condition = nn.Linear(z_dim, mlp_dim)
        self.gain_and_shift = WideLinear(mlp_dim, 2 * GATES * hidden)
        for gate_HH in self.recurrent.weight.detach().chunk(GATES):
            nn.init.orthogonal_(gate_HH)

    def step(self, gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        """Run the cell once with a given z."""
        condition_BM = clipped_leaky_relu(self.condition(z_BZ))
        gain_BG, shift_BG = self.gain_and_shift(condition_BM).clamp(-CLIP, CLIP).chunk(2, dim=-1)
        product_BG = self.recurrent(state.h_BH)
        with no_autocast(product_BG):
            normed_BG = F.layer_norm(product_BG, product_BG.shape[-1:])
            return cell(widen(gx_BG) + (1.0 + gain_BG) * normed_BG + shift_BG, state.c_BH)
