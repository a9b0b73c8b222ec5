"""The network: its terms against their definitions, padding, and where gradients stop."""

import pytest
import torch
from small_zforcing import SIZES, B, T, all_parts, data, make
from torch.distributions import Normal, kl_divergence

from zfdist.model.kernels.lstm_cell import clipped_leaky_relu
from zfdist.model.objective import objective
from zfdist.schedule import EVALUATION, Weights


def test_terms_are_their_definitions():
    model, (frames, lengths, eps) = make(latent_clamp=0.2), data()
    x, y = frames[:-1], frames[1:]
    terms, parts = model(x, y, lengths, eps), all_parts(model, frames, lengths, eps)
    h_before = torch.cat([model.initial_state(B).h_BH[None], parts["h"][:-1]])

    def net(head, value):
        for layer in head.hidden:
            value = torch.nn.functional.leaky_relu(layer(value), 1 / 3).clamp(-3, 3)
        return head.out(value)

    def normal(parameters, sigma):
        mean, raw = parameters.chunk(2, dim=-1)
        return Normal(mean, sigma(raw))

    def half_exp(logvar):
        return (logvar / 2).exp()

    prior = normal(net(model.prior, h_before).clamp(-0.2, 0.2), half_exp)
    posterior = Normal(parts["mu"], half_exp(parts["logvar"]))
    aux = normal(net(model.aux, parts["z"]).clamp(-0.2, 0.2), half_exp)
    aux = Normal(aux.loc.tanh(), aux.scale)

    def floor(raw):
        return 1e-3 + raw.exp()

    expected = {
        "log_px_TB": normal(net(model.output, parts["h"]), floor).log_prob(y),
        "kl_TB": kl_divergence(posterior, prior),
        "log_pb_TB": aux.log_prob(parts["b"]),
        "log_px_backward_TB": normal(net(model.backward_output, parts["b"]), floor).log_prob(x),
        "log_ratio_TB": prior.log_prob(parts["z"]) - posterior.log_prob(parts["z"]),
    }
    assert not terms.log_ratio_TB.requires_grad
    for name, value in expected.items():
        torch.testing.assert_close(getattr(terms, name), value.sum(-1), rtol=1e-11, atol=1e-11, msg=name)


def test_aux_tanh_and_clamp_are_options():
    frames, lengths, eps = data()
    results = [
        make(**options)(frames[:-1], frames[1:], lengths, 20 * eps)
        for options in ({}, {"aux_tanh": False}, {"latent_clamp": 0.0}, {"latent_clamp": 0.1})
    ]
    assert not torch.equal(results[0].log_pb_TB, results[1].log_pb_TB)
    assert torch.equal(results[0].kl_TB, results[1].kl_TB)
    assert not torch.equal(results[0].kl_TB, results[3].kl_TB)
    assert torch.equal(results[0].kl_TB, results[2].kl_TB)  # small nets stay within 8 by themselves


def test_the_backward_net_is_an_lstm_over_each_rows_own_reversal():
    model, (frames, _, _) = make(), data(batch=4)
    lengths = torch.tensor([T, 4, 1, 0])
    y = frames[1:].clone().requires_grad_()
    mix = torch.randn(T, 4, SIZES["hidden"], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = (torch.arange(T)[:, None] < lengths)[..., None]
    b = model._read_backwards(y, lengths)
    (gradient,) = torch.autograd.grad((mix * b * mask).sum(), y)
    for row, n in enumerate(lengths.tolist()[:3]):
        alone = y[:n, row].detach().requires_grad_()
        expected = torch.nn.LSTM.forward(model.backward_net, alone.flip(0)[:, None])[0][:, 0].flip(0)
        torch.testing.assert_close(b[:n, row], expected)
        (its_gradient,) = torch.autograd.grad((mix[:n, row] * expected).sum(), alone)
        torch.testing.assert_close(gradient[:n, row], its_gradient)


def gradients_by_module(model, scalar):
    gradients = torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True)
    sizes = {}
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        module = name.split(".")[0]
        sizes[module] = sizes.get(module, 0.0) + (0.0 if gradient is None else float(gradient.abs().sum()))
    return sizes


def test_the_target_of_alphas_term_is_a_constant():
    """With z cut off from b, nothing of log p(b|z) may reach the backward net: the target itself gives no gradient."""
    model, (frames, lengths, eps) = make(), data()
    with torch.no_grad():
        model.posterior_b.weight.zero_()
    sizes = gradients_by_module(model, model(frames[:-1], frames[1:], lengths, eps).log_pb_TB.sum())
    assert sizes["backward_net"] == 0
    assert sizes["aux"] > 0


def test_stop_at_the_target_leaves_the_route_through_the_posterior():
    model, (frames, lengths, eps) = make(aux_stop_gradient="target"), data()
    sizes = gradients_by_module(model, model(frames[:-1], frames[1:], lengths, eps).log_pb_TB.sum())
    assert all(sizes[name] > 0 for name in ("backward_net", "posterior_b", "recurrence", "aux", "input"))


@pytest.mark.parametrize("implementation", ["reference", "bptt"])
def test_stop_at_the_backward_net_leaves_it_exactly_nothing(implementation):
    model, (frames, lengths, eps) = make(aux_stop_gradient="backward_net", recurrence=implementation), data()
    terms = model(frames[:-1], frames[1:], lengths, eps)
    sizes = gradients_by_module(model, terms.log_pb_TB.sum())
    assert sizes["backward_net"] == 0
    assert all(sizes[name] > 0 for name in ("posterior_b", "recurrence", "aux", "input"))
    other = make(aux_stop_gradient="target", recurrence=implementation)(frames[:-1], frames[1:], lengths, eps)
    for ours, theirs in zip(terms[:5], other[:5], strict=True):
        assert torch.equal(ours, theirs)


def test_betas_term_is_about_the_backward_net_only():
    model, (frames, lengths, eps) = make(), data()
    sizes = gradients_by_module(model, model(frames[:-1], frames[1:], lengths, eps).log_px_backward_TB.sum())
    assert {name for name, size in sizes.items() if size > 0} == {"backward_net", "backward_output"}


def test_alpha_and_beta_of_zero_give_their_heads_a_zero_gradient():
    model, (frames, lengths, eps) = make(), data()
    mask = torch.ones(T, B, dtype=torch.bool)
    objective(model(frames[:-1], frames[1:], lengths, eps), mask, EVALUATION, B).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        heads = name.startswith(("aux.", "backward_output."))
        assert bool((parameter.grad == 0).all()) == heads, name


@pytest.mark.parametrize("stop", ["target", "backward_net"])
def test_both_implementations_give_one_gradient(stop):
    frames, _, eps = data()
    lengths = torch.tensor([T, 6, 0])
    mask = torch.arange(T)[:, None] < lengths
    gradients = []
    for implementation in ("reference", "bptt"):
        model = make(recurrence=implementation, aux_stop_gradient=stop)
        terms = model(frames[:-1], frames[1:], lengths, eps)
        objective(terms, mask, Weights(0.3, 0.2, 0.1, 0.0), 2).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-12 * gradients[0].norm()


def test_no_graph_through_padding_is_needed_for_a_batch_of_dummies():
    model, (frames, _, eps) = make(), data()
    mask = torch.zeros(T, B, dtype=torch.bool)
    loss = objective(model(frames[:-1], frames[1:], torch.zeros(B, dtype=torch.int64), eps), mask, EVALUATION, 5)
    loss.total.backward()
    assert loss.total == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_the_last_product_of_every_net_is_wide_under_autocast():
    model, (_, _, eps) = make(torch.float32), data(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = clipped_leaky_relu(model.aux.hidden[0](eps))
        given = model.aux(eps)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(given, model.aux.out(narrow.float()))


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_output_layers(layers):
    model, (frames, lengths, eps) = make(output_layers=layers), data()
    assert len(model.output.hidden) == len(model.backward_output.hidden) == layers
    assert len(model.prior.hidden) == len(model.aux.hidden) == 1
    assert torch.isfinite(model(frames[:-1], frames[1:], lengths, eps).log_px_TB).all()
