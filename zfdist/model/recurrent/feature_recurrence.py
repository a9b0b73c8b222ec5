"""VRNN's feature extractors (Chung et al., 2015, section 3.1), and its recurrence that reads a latent through one.

As zfdist.model.recurrent.recurrence, but with

    phi(v)        = clip(lrelu(v W' + b))                    one hidden layer, as in all small nets here
    o, i, f, u    = gx_t + h_{t-1} Wh' + phi_z(z_t) Wz'      gx_t from phi_x(x_{t+1})

By autograd only.

Shapes: T time, B batch, H hidden, Z latent, M features and hidden units of the nets, G = 4 H gates in the order
o, i, f, u.
"""

from torch import Tensor, nn

from zfdist.model.kernels.lstm_cell import GATES, State, cell, clipped_leaky_relu, no_autocast
from zfdist.model.kernels.mixed_precision import WideLinear, widen
from zfdist.model.recurrent.stepwise import StepwiseRecurrence


class Features(nn.Module):
    """phi: a layer and its non-linearity."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, features)

    def forward(self, value: Tensor) -> Tensor:
        """Return [.., M] for [.., inputs]."""
        return clipped_leaky_relu(self.layer(value))


class FeatureRecurrence(StepwiseRecurrence):
    """The weights inside the loop, and its step."""

    def __init__(self, hidden: int, z_dim: int, mlp_dim: int, latent_clamp: float) -> None:
        super().__init__()
        self.latent_clamp = latent_clamp
        self.recurrent = WideLinear(hidden, GATES * hidden, bias=False)
        self.features = Features(z_dim, mlp_dim)
        self.input_z = WideLinear(mlp_dim, GATES * hidden, bias=False)
        self.posterior_h = WideLinear(hidden, mlp_dim, bias=False)
        self.posterior = nn.Linear(mlp_dim, 2 * z_dim)
        for gate_HH in self.recurrent.weight.detach().chunk(GATES):
            nn.init.orthogonal_(gate_HH)

    def step(self, gx_BG: Tensor, z_BZ: Tensor, state: State) -> State:
        """Run the cell once with a given z."""
        product_BG = self.recurrent(state.h_BH) + self.input_z(self.features(z_BZ))
        with no_autocast(product_BG):
            return cell(widen(gx_BG) + product_BG, state.c_BH)
