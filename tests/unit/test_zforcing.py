"""The network against MODEL's alignment: who may read what, and where gradients stop."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from zfdist.config import ModelConfig
from zfdist.model.objective import objective
from zfdist.model.zforcing import ZForcing, build
from zfdist.schedule import EVALUATION, Weights

T, B, X, Z = 9, 3, 5, 4
SIZES = {"hidden": 12, "z_dim": Z, "mlp_dim": 8}


def make(dtype=torch.float64, seed=0, **options) -> ZForcing:
    model = build(ModelConfig(**SIZES, **options), X, seed).to(dtype)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "bias" in name or "b_q" in name:
                parameter.normal_(std=0.3)  # a zero would hide a forgotten bias
    return model


def data(batch=B, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(T + 1, batch, X, generator=generator, dtype=dtype)
    eps = torch.randn(T, batch, Z, generator=generator, dtype=dtype)
    return frames, torch.full((batch,), T), eps


def changed(frames, t):
    """Frames x_1 .. x_{T+1} with x_t (counted from 1) replaced."""
    frames = frames.clone()
    frames[t - 1] += 1.0
    return frames


def all_parts(model, frames, lengths, eps):
    """Every quantity of the model, by name, with its time step first."""
    x, y = frames[:-1], frames[1:]
    unrolled = model.infer(x, y, lengths, eps)
    h_before = torch.cat([model.initial_state(x.shape[1]).h_BH[None], unrolled.h_TBH[:-1]])
    output = model._output_density(model.output, unrolled.h_TBH)
    return {
        "b": model._read_backwards(y, lengths),
        "mu": unrolled.mu_TBZ,
        "logvar": unrolled.logvar_TBZ,
        "z": unrolled.z_TBZ,
        "h": unrolled.h_TBH,
        "prior": model._prior(h_before).mean,
        "output": output.mean,
    }


def steps_that_changed(before, after):
    return {t + 1 for t in range(len(before)) if not torch.equal(before[t], after[t])}


@pytest.mark.parametrize("t", range(1, T + 2))
def test_b_reads_from_the_end_down_to_the_next_frame(t):
    model, (frames, lengths, eps) = make(), data()
    before, after = (all_parts(model, f, lengths, eps)["b"] for f in (frames, changed(frames, t)))
    # b_s has read x_{s+1} .. x_{T+1}: a change of x_t moves b_1 .. b_{t-1} and nothing else.
    assert steps_that_changed(before, after) == set(range(1, t))


@pytest.mark.parametrize("t", range(1, T + 1))
def test_the_posterior_sees_the_frame_it_explains(t):
    model, (frames, lengths, eps) = make(), data()
    before, after = (all_parts(model, f, lengths, eps) for f in (frames, changed(frames, t + 1)))
    assert t in steps_that_changed(before["mu"], after["mu"])
    assert t in steps_that_changed(before["logvar"], after["logvar"])


def run_with_z(model, frames, z_TBZ):
    """The generative half, by the cell one step at a time: prior and output at every step for a given z."""
    state, priors, outputs = model.initial_state(frames.shape[1]), [], []
    for x_BX, z_BZ in zip(frames[:-1], z_TBZ, strict=True):
        priors.append(torch.cat(model._prior(state.h_BH), dim=-1))
        state = model.recurrence.step(model.input(x_BX), z_BZ, state)
        outputs.append(torch.cat(model._output_density(model.output, state.h_BH), dim=-1))
    return torch.stack(priors), torch.stack(outputs)


@pytest.mark.parametrize("t", range(1, T + 1))
def test_given_z_the_output_at_t_knows_nothing_after_x_t_and_the_prior_nothing_from_x_t_on(t):
    model, (frames, lengths, eps) = make(), data()
    z_TBZ = all_parts(model, frames, lengths, eps)["z"]
    before, after = (run_with_z(model, f, z_TBZ) for f in (frames, changed(frames, t)))
    prior_steps, output_steps = (steps_that_changed(b, a) for b, a in zip(before, after, strict=True))
    assert output_steps == set(range(t, T + 1))
    assert prior_steps == set(range(t + 1, T + 1))


def test_the_unrolled_network_is_the_stepwise_one():
    model, (frames, lengths, eps) = make(), data()
    parts = all_parts(model, frames, lengths, eps)
    priors, outputs = run_with_z(model, frames, parts["z"])
    torch.testing.assert_close(priors.chunk(2, dim=-1)[0], parts["prior"])
    torch.testing.assert_close(outputs.chunk(2, dim=-1)[0], parts["output"])


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
    }
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


@pytest.mark.parametrize("implementation", ["reference", "bptt"])
def test_a_padded_batch_gives_the_terms_of_its_sequences_alone(implementation):
    model, (frames, _, eps) = make(recurrence=implementation), data(batch=4)
    lengths = torch.tensor([T, 4, 1, 0])
    x, y = frames[:-1].clone(), frames[1:].clone()
    for row, length in enumerate(lengths.tolist()):
        x[length:, row], y[length:, row] = 7.0, -7.0  # whatever the padding holds
    padded = model(x, y, lengths, eps)
    for row, n in enumerate(lengths.tolist()[:3]):
        one = slice(row, row + 1)
        alone = model(x[:n, one], y[:n, one], lengths[one], eps[:n, one])
        for whole, single in zip(padded, alone, strict=True):
            torch.testing.assert_close(whole[:n, one], single, rtol=1e-12, atol=1e-12)


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
    for ours, theirs in zip(terms, other, strict=True):
        assert torch.equal(ours, theirs)


def test_betas_term_is_about_the_backward_net_only():
    model, (frames, lengths, eps) = make(), data()
    sizes = gradients_by_module(model, model(frames[:-1], frames[1:], lengths, eps).log_px_backward_TB.sum())
    assert {name for name, size in sizes.items() if size > 0} == {"backward_net", "backward_output"}


def test_betas_term_predicts_the_frame_before_those_that_b_has_read():
    model, (frames, lengths, eps) = make(), data()
    for t in range(1, T + 2):
        before, after = (model(f[:-1], f[1:], lengths, eps).log_px_backward_TB for f in (frames, changed(frames, t)))
        # x_t is scored at step t and read by b_1 .. b_{t-1}; later steps know nothing of it.
        assert steps_that_changed(before, after) == set(range(1, min(t, T) + 1))


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


def test_autocast_keeps_terms_wide_and_near():
    model, (frames, lengths, eps) = make(torch.float32), data(dtype=torch.float32)
    exact = model(frames[:-1], frames[1:], lengths, eps)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(frames[:-1], frames[1:], lengths, eps)
    for a, b in zip(exact, narrow, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.02 * a.norm()
    narrow.log_px_TB.sum().backward()


def test_generating_with_the_posteriors_latents_is_reconstruction_fed_back():
    """generate is the prior path: with prior noise chosen to give the posterior's z, the two halves meet."""
    model, (frames, lengths, eps) = make(), data()
    parts = all_parts(model, frames, lengths, eps)
    zero = torch.zeros(1, B, X, dtype=torch.float64)
    prior = model._prior(model.initial_state(B).h_BH)
    eps_z = ((parts["z"][0] - prior.mean) / prior.log_std.exp())[None]
    drawn = model.generate(eps_z, zero, x_BX=frames[0])
    torch.testing.assert_close(drawn.x_TBX[0], parts["output"][0])
    torch.testing.assert_close(drawn.state.h_BH, parts["h"][0])


def test_generation_goes_on_where_it_stopped():
    model, (frames, _, eps) = make(), data()
    noise = torch.randn(T, B, X, dtype=torch.float64)
    whole = model.generate(eps, noise)
    first = model.generate(eps[:4], noise[:4])
    second = model.generate(eps[4:], noise[4:], state=first.state, x_BX=first.x_TBX[-1])
    torch.testing.assert_close(torch.cat([first.x_TBX, second.x_TBX]), whole.x_TBX)


def test_reconstruction_is_what_log_px_scores():
    model, (frames, lengths, eps) = make(), data()
    density = model.reconstruct(frames[:-1], frames[1:], lengths, eps)
    terms = model(frames[:-1], frames[1:], lengths, eps)
    torch.testing.assert_close(density.log_prob(frames[1:]), terms.log_px_TB)


def test_build_is_a_function_of_the_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = build(ModelConfig(**SIZES), X, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    same, other = (build(ModelConfig(**SIZES), X, seed=s).state_dict() for s in (5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["input.weight"], other["input.weight"])


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_output_layers(layers):
    model, (frames, lengths, eps) = make(output_layers=layers), data()
    assert len(model.output.hidden) == len(model.backward_output.hidden) == layers
    assert len(model.prior.hidden) == len(model.aux.hidden) == 1
    assert torch.isfinite(model(frames[:-1], frames[1:], lengths, eps).log_px_TB).all()


def test_the_elbo_lies_below_the_exact_likelihood_and_its_weights_average_to_it():
    """Two steps, one latent each: all expectations by quadrature over a grid of noise, on the same network."""
    model = build(ModelConfig(hidden=4, z_dim=1, mlp_dim=6), 2, seed=3).double()
    with torch.no_grad():
        model.recurrence.w_z_GZ.mul_(4.0)  # let the latents matter
    line = torch.linspace(-8.0, 8.0, 129, dtype=torch.float64)
    eps = torch.cartesian_prod(line, line).T[..., None]  # [2, 129 * 129, 1]
    log_noise = Normal(0.0, 1.0).log_prob(eps).sum((0, 2)) + 2 * torch.log(line[1] - line[0])
    frames = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = (f.expand(2, eps.shape[1], 2) for f in (frames[:-1], frames[1:]))

    with torch.no_grad():
        state, log_px = model.initial_state(eps.shape[1]), torch.zeros(eps.shape[1], dtype=torch.float64)
        for t in range(2):
            state = model.recurrence.step(model.input(x[t]), model._prior(state.h_BH).sample(eps[t]), state)
            log_px += model._output_density(model.output, state.h_BH).log_prob(y[t])
        exact = torch.logsumexp(log_px + log_noise, 0)

        lengths = torch.full((eps.shape[1],), 2)
        terms, inferred = model(x, y, lengths, eps), model.infer(x, y, lengths, eps)
        elbo = ((terms.log_px_TB - terms.kl_TB).sum(0) * log_noise.exp()).sum()
        prior = model._prior(torch.cat([torch.zeros(1, eps.shape[1], 4).double(), inferred.h_TBH[:-1]]))
        posterior = Normal(inferred.mu_TBZ, (inferred.logvar_TBZ / 2).exp())
        log_ratio = prior.log_prob(inferred.z_TBZ) - posterior.log_prob(inferred.z_TBZ).sum(-1)
        weights = torch.logsumexp((terms.log_px_TB + log_ratio).sum(0) + log_noise, 0)
        sampled_elbo = ((terms.log_px_TB + log_ratio).sum(0) * log_noise.exp()).sum()

    assert elbo < exact - 1e-3
    assert float(weights) == pytest.approx(float(exact), abs=1e-5)
    assert float(sampled_elbo) == pytest.approx(float(elbo), abs=1e-5)
