"""A density of frames that is autoregressive inside the frame: each sample given the features and those before it.

    a_s = act((1 + gain) * sum_{i < s} w_{s-i} x_i + shift)        K units; w is the same for all frames and samples
    x_s ~ N(mean_s + m . a_s, (sigma_floor + exp(raw_s + r . a_s))^2)

Mean, raw scale, gain and shift come from the output net, so the features choose among the K filters w, as a linear
predictor is chosen in speech coding; the other weights belong to the density. A frame is scored in one convolution, and
drawn sample by sample. Lai et al. (2019, arXiv 1902.01388) ask what latents are good for with such an output.

Shapes: ... any leading dimensions (time, batch), D samples of a frame, K units, R reach of the filters, N frames,
S samples at a time.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfdist.config import ModelConfig
from zfdist.model.distributions import Gaussian, floored
from zfdist.model.kernels.lstm_cell import clipped_leaky_relu
from zfdist.model.kernels.mixed_precision import widen


class Autoregressive(NamedTuple):
    """What the output net says of each frame, and the weights that all frames share."""

    means: Tensor  # [..., D]
    raws: Tensor  # [..., D]
    gains: Tensor  # [..., K]
    shifts: Tensor  # [..., K]
    filters_KR: Tensor  # the last of R weighs the sample just before
    readout_2K: Tensor  # to mean and raw scale
    sigma_floor: float

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_1) + log p(x_2 | x_1) + ... of a frame: [..., D] -> [...]."""
        wide = widen(value).to(self.means.dtype)
        reach = self.filters_KR.shape[1]
        before_N1D = F.pad(wide.reshape(-1, 1, wide.shape[-1])[..., :-1], (reach, 0))
        heard_NKD = F.conv1d(before_N1D, self.filters_KR[:, None])
        return self._given(heard_NKD.view(*wide.shape[:-1], *heard_NKD.shape[1:]), slice(None)).log_prob(wide)

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """Return a frame from `eps` [..., D], sample by sample; `temperature` scales the noise, 0 takes each mean."""
        drawn = torch.zeros_like(self.means)
        reach = self.filters_KR.shape[1]
        for s in range(drawn.shape[-1]):
            heard_K1 = (drawn[..., :s] @ self.filters_KR[:, reach - s :].t())[..., None]
            here = slice(s, s + 1)
            drawn[..., here] = self._given(heard_K1, here).sample(eps[..., here], temperature)
        return drawn

    def _given(self, heard_KS: Tensor, samples: slice) -> Gaussian:
        """Return the densities of some samples, given what the filters say of those before: [..., K, S]."""
        units_KS = clipped_leaky_relu((1.0 + self.gains[..., None]) * heard_KS + self.shifts[..., None])
        mean, raw = (self.readout_2K @ units_KS).unbind(-2)
        raw = self.raws[..., samples] + raw
        return Gaussian(self.means[..., samples] + mean, floored(raw, self.sigma_floor))


class CausalNet(nn.Module):
    """The density's own weights: K filters over the earlier samples of a frame, and what is made of them."""

    def __init__(self, config: ModelConfig, x_dim: int) -> None:
        super().__init__()
        self.sizes = [x_dim, x_dim, config.causal_units, config.causal_units]
        self.sigma_floor = config.sigma_floor
        reach = max(1, x_dim - 1)
        self.filters = nn.Parameter(_drawn(config.causal_units, reach))
        self.readout = nn.Parameter(_drawn(2, config.causal_units))

    def forward(self, numbers: Tensor, value: Tensor) -> Tensor:
        """Return the log-probability of frames given the output net's numbers [..., 2 (D + K)]: [..., D] -> [...]."""
        return self.density(numbers).log_prob(value)

    def density(self, numbers: Tensor) -> Autoregressive:
        """Return the density of a frame. Reads weights outside `forward` when it is called by itself."""
        means, raws, gains, shifts = torch.split(widen(numbers), self.sizes, dim=-1)
        return Autoregressive(means, raws, gains, shifts, self.filters, self.readout, self.sigma_floor)


def _drawn(outputs: int, inputs: int) -> Tensor:
    bound = 1.0 / math.sqrt(inputs)
    return torch.empty(outputs, inputs).uniform_(-bound, bound)
