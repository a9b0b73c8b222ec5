"""The rival: Z-Forcing's training step with everything inside the loop over time, as its authors published it.

Of their code this keeps the structure: at each step the input is joined with z and projected into the gates, h is
projected anew, and prior, posterior, auxiliary net and KL are computed on that step's [B, .] tensors. As there, the
backward LSTM is nn.LSTM, and the output nets run after the loop on the stacked states. The log p(z) and log q(z) that
they also compute at each step, for evaluation only, are left out in their favour; so is all bookkeeping.

It reads the parameters of a `ZForcing`, so that losses and gradients can be compared number by number.

Shapes: T time, B batch, X frame dimensions, H hidden, Z latent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfdist.model.networks.zforcing import ZForcing
from zfdist.model.terms import Terms

SLOPE, CLIP = 1 / 3, 3.0


def published_terms(model: ZForcing, x_TBX: Tensor, y_TBX: Tensor, eps_TBZ: Tensor) -> Terms:
    """Return the terms of `model` on sequences of equal length, by the naive loop; frames or tokens."""
    bound, core = model.config.latent_clamp, model.recurrence
    e_TBE, later_TBE = model.embed(x_TBX), model.embed(y_TBX)
    b_TBH = nn.LSTM.forward(model.backward_net, later_TBE.flip(0))[0].flip(0)
    w_xz = torch.cat([model.input.weight, core.w_z_GZ], dim=1)
    w_hb = torch.cat([core.w_a_MH, model.posterior_b.weight], dim=1)
    h = c = b_TBH.new_zeros(b_TBH.shape[1:])
    h_T, kl_T, log_pb_T = [], [], []
    for x, b, eps in zip(e_TBE, b_TBH, eps_TBZ, strict=True):
        hidden_q = lrelu(F.linear(torch.cat([h, b], dim=1), w_hb, model.posterior_b.bias))
        mu_q, logvar_q = F.linear(hidden_q, core.w_q_QM, core.b_q_Q).clamp(-bound, bound).chunk(2, dim=1)
        mu_p, logvar_p = head(model.prior, h).clamp(-bound, bound).chunk(2, dim=1)
        z = mu_q + torch.exp(0.5 * logvar_q) * eps
        mu_a, logvar_a = head(model.aux, z).clamp(-bound, bound).chunk(2, dim=1)
        log_pb_T.append(log_normal(b.detach(), torch.tanh(mu_a), 0.5 * logvar_a))
        ratio = (logvar_q.exp() + (mu_q - mu_p) ** 2) / logvar_p.exp()
        kl_T.append(0.5 * (logvar_p - logvar_q + ratio - 1).sum(1))
        gates = F.linear(torch.cat([x, z], dim=1), w_xz, model.input.bias) + F.linear(h, core.w_h_GH)
        o, i, f, u = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
        h = torch.sigmoid(o) * torch.tanh(c)
        h_T.append(h)
    log_px = observation_log_prob(model, head(model.output, torch.stack(h_T)), y_TBX)
    log_px_backward = observation_log_prob(model, head(model.backward_output, b_TBH), x_TBX)
    return Terms(log_px, torch.stack(kl_T), torch.stack(log_pb_T), log_px_backward, torch.zeros_like(log_px))


def lrelu(value: Tensor) -> Tensor:
    return F.leaky_relu(value, SLOPE).clamp(-CLIP, CLIP)


def head(net: torch.nn.Module, value: Tensor) -> Tensor:
    for layer in net.hidden:
        value = lrelu(layer(value))
    return net.out(value)


def log_normal(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    squared = (value - mean) ** 2 / torch.exp(2 * log_std)
    return (-0.5 * (squared + torch.log(torch.tensor(2 * torch.pi))) - log_std).sum(-1)


def observation_log_prob(model: ZForcing, parameters: Tensor, value: Tensor) -> Tensor:
    if model.config.density == "categorical":
        return F.log_softmax(parameters, dim=-1).gather(-1, value[..., None]).squeeze(-1)
    if model.config.density == "bernoulli":
        return -F.binary_cross_entropy_with_logits(parameters, value, reduction="none").sum(-1)
    mean, raw = parameters.chunk(2, dim=-1)
    return log_normal(value, mean, torch.log(model.config.sigma_floor + torch.exp(raw)))
