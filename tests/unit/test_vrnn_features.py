"""VRNN with the feature extractors of its own paper, against its formulas written out."""

import torch
from small_systems import SIZES, B, Z, data, make, run


def test_the_feature_extractors_of_vrnn_as_they_are_written():
    """Chung et al. (2015), equations (5) to (9), one step and one product at a time."""
    model, (frames, lengths, eps) = make("vrnn", vrnn_features=True), data()
    loop = model.recurrence

    def net(layer, value):
        return torch.nn.functional.leaky_relu(layer(value), 1 / 3).clamp(-3, 3)

    def lstm(x, z, h, c):
        gates = model.input(net(model.features_x.layer, x)) + loop.recurrent(h)
        o, i, f, u = (gates + loop.input_z(net(loop.features.layer, z))).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * u.tanh()
        return o.sigmoid() * c.tanh(), c

    h, c = lstm(frames[0], torch.zeros(B, Z).double(), *torch.zeros(2, B, SIZES["hidden"]).double())
    log_px, kl = [], []
    for y, noise in zip(frames[1:], eps, strict=True):
        seen = model.posterior_y(net(model.features_x.layer, y)) + loop.posterior_h(h)
        mean, logvar = (
            loop.posterior(torch.nn.functional.leaky_relu(seen, 1 / 3).clamp(-3, 3)).clamp(-8, 8).chunk(2, -1)
        )
        z = mean + (logvar / 2).exp() * noise
        prior_mean, prior_logvar = model.prior(h).clamp(-8, 8).chunk(2, -1)
        q, p = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean, logvar), (prior_mean, prior_logvar)))
        kl.append(torch.distributions.kl_divergence(q, p).sum(-1))
        log_px.append(model.output(torch.cat([h, net(loop.features.layer, z)], dim=-1)[None], y[None])[0])
        h, c = lstm(y, z, h, c)
    terms = run(model, frames, lengths, eps)
    torch.testing.assert_close(terms.log_px_TB, torch.stack(log_px))
    torch.testing.assert_close(terms.kl_TB, torch.stack(kl))
