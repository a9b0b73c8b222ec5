"""Every system with every density: padding, alignment, gradients, narrow arithmetic, generation, sizes."""

import pytest
import torch
from small_systems import DENSITIES, SIZES, SYSTEMS, B, T, X, Z, data, latents, make, noise_that_gives, run

from zfdist.config import ConfigError, ModelConfig
from zfdist.model.objective import objective
from zfdist.model.systems import build, parameter_counts
from zfdist.schedule import Weights

SWITCHES = [
    {"aux_sees_h": True}, {"latent_sees_x": True}, {"output_skip": True}, {"layer_norm_z": True},
    {"output_sees_z": True}, {"embed_dim": 2},
    {"embed_dim": 2, "embed_separate": True, "latent_sees_x": True, "output_skip": True},
]  # fmt: skip
CASES = [(s, d, {}) for s in SYSTEMS for d in DENSITIES]
CASES += [("zforcing", "gaussian", switches) for switches in SWITCHES]
CASES += [(s, "categorical", {"embed_separate": True}) for s in SYSTEMS] + [
    ("vrnn", "gaussian", {"vrnn_prior": "standard"}),
    ("vrnn", "gaussian", {"vrnn_features": True}),
    ("vrnn", "categorical", {"vrnn_features": True, "vrnn_prior": "standard", "embed_separate": True}),
    ("zforcing", "categorical", {"latent_sees_x": True, "output_skip": True, "aux_sees_h": True}),
    ("srnn", "categorical", {"label_classes": 2}),
    ("zforcing", "categorical", {"label_classes": 3, "output_layers": 0}),
]
every_case = pytest.mark.parametrize(
    ("system", "density", "options"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v)
)
READ = ("zforcing", "storn", "vrnn", "srnn", "rnn", "lru")  # for which it is said below what each may read
every_system = pytest.mark.parametrize("system", SYSTEMS)


@every_case
def test_many_trajectories_in_one_call_are_those_of_a_call_each(system, density, options):
    model, (frames, _, _) = make(system, density, **options), data(density)
    lengths, eps = torch.tensor([T, 3, 1]), torch.randn(4, T, B, Z, dtype=torch.float64)
    together = run(model, frames, lengths, torch.cat(list(eps), dim=1))
    alone = [run(model, frames, lengths, one) for one in eps]
    for name in ("log_px_TB", "kl_TB", "log_ratio_TB"):
        expected = torch.cat([getattr(terms, name) for terms in alone], dim=1)
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-9, atol=1e-9)


@every_case
def test_a_padded_batch_gives_the_terms_of_its_sequences_alone(system, density, options):
    model, (frames, _, eps) = make(system, density, **options), data(density, batch=4)
    lengths = torch.tensor([T, 3, 1, 0])
    x, y = frames[:-1].clone(), frames[1:].clone()
    for row, length in enumerate(lengths.tolist()):
        x[length:, row], y[length:, row] = 1, 0  # whatever the padding holds
    padded = model(x, y, lengths, eps)
    for row, n in enumerate(lengths.tolist()[:3]):
        one = slice(row, row + 1)
        alone = model(x[:n, one], y[:n, one], lengths[one], eps[:n, one])
        for whole, single in zip(padded[:5], alone[:5], strict=True):
            torch.testing.assert_close(whole[:n, one], single, rtol=1e-12, atol=1e-12)
        if alone.label_logits_BC is not None:
            torch.testing.assert_close(padded.label_logits_BC[one], alone.label_logits_BC)


@every_case
def test_gradients_of_the_objective(system, density, options):
    """By finite differences; where alpha's target is a constant, among the parameters that do not move it."""
    tiny = {"hidden": 3, "z_dim": Z, "mlp_dim": 3, "mixture_components": 2} | options
    model, (frames, _, eps) = make(system, density, **tiny), data(density, batch=2, steps=3)
    lengths, labels = torch.tensor([3, 2]), torch.tensor([1, -1])
    mask = torch.arange(3)[:, None] < lengths
    parameters = dict(model.named_parameters())
    moves_target = {n for n in parameters if n.startswith(("backward_net", "embed"))}

    def check(names, weights):
        def loss(*values):
            changed = dict(zip(names, values, strict=True))
            terms = torch.func.functional_call(model, changed, (frames[:-1], frames[1:], lengths, eps))
            return objective(terms, mask, weights, 2, labels).total

        values = [parameters[name].detach().clone().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(loss, values, fast_mode=True)

    check(list(parameters), Weights(0.7, 0.0, 0.4, 0.0, label=0.9))
    check([n for n in parameters if n not in moves_target], Weights(0.7, 0.3, 0.4, 0.01, label=0.9))


@pytest.mark.parametrize("t", [1, 4, T, T + 1])
@pytest.mark.parametrize(("system", "options"), [*((s, {}) for s in READ), ("vrnn", {"vrnn_features": True})])
def test_who_may_read_what(system, options, t):
    """With z held fixed, a change of x_t moves the outputs from t on, and priors and posteriors as they are defined."""
    model, (frames, lengths, eps) = make(system, **options), data()
    changed = frames.clone()
    changed[t - 1] += 1.0
    later = set(range(t, T + 1))
    if not model.has_latents:
        assert moved(features(model, frames, lengths, eps), features(model, changed, lengths, eps)) == later
        return
    with latents() as caught:
        run(model, frames, lengths, eps)
        prior, posterior, z = caught[-1]
        other_eps = noise_that_gives(model, changed, lengths, z)
        run(model, changed, lengths, other_eps)
        other_prior, other_posterior, other_z = caught[-1]
    torch.testing.assert_close(z, other_z)
    assert moved(features(model, frames, lengths, eps), features(model, changed, lengths, other_eps)) == later
    priors = {"zforcing": later - {t}, "storn": set(), "vrnn": later, "srnn": later}
    # q(z_t): zforcing's h_{t-1} and b_t leave out x_t alone; storn and vrnn have read x_{t+1}, srnn everything.
    everything = set(range(1, T + 1))
    posteriors = {
        "zforcing": everything - {t},
        "storn": {s for s in everything if s >= t - 1},
        "vrnn": {s for s in everything if s >= t - 1},
        "srnn": everything,
    }
    assert moved(prior.mean, other_prior.mean) == moved(prior.log_std, other_prior.log_std) == priors[system]
    assert (
        moved(posterior.log_std, other_posterior.log_std)
        == posteriors[system]
        == moved(posterior.mean, other_posterior.mean)
    )


def features(model, frames, lengths, eps):
    return model.infer(frames[:-1], frames[1:], lengths, eps).features_TBH


def moved(before, after):
    return {t + 1 for t in range(len(before)) if not torch.allclose(before[t], after[t], rtol=1e-8, atol=1e-8)}


def test_a_prior_that_sees_x_t_moves_with_it():
    model, (frames, lengths, eps) = make(latent_sees_x=True), data()
    changed = frames.clone()
    changed[3] += 1.0
    with latents() as caught:
        run(model, frames, lengths, eps)
        z = caught[-1][2]
        run(model, changed, lengths, noise_that_gives(model, changed, lengths, z))
        assert moved(caught[0][0].mean, caught[-1][0].mean) == set(range(4, T + 1))


@every_case
def test_the_mean_of_the_log_ratio_is_minus_the_kl(system, density, options):
    model, many = make(system, density, **options), 20_000
    frames, _, _ = data(density, batch=1, steps=1)
    eps = torch.randn(1, many, Z, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        terms = run(model, frames.expand(2, many, *frames.shape[2:]), torch.ones(many, dtype=torch.int64), eps)
    ratio = terms.log_ratio_TB
    assert abs(ratio.mean() + terms.kl_TB.mean()) <= 4 * ratio.std() / many**0.5
    assert (ratio.std() == 0) == (not model.has_latents)


@every_case
def test_reconstruction_is_what_log_px_scores(system, density, options):
    model, (frames, lengths, eps) = make(system, density, **options), data(density)
    rebuilt = model.reconstruct(frames[:-1], frames[1:], lengths, eps)
    torch.testing.assert_close(rebuilt.log_prob(frames[1:]), run(model, frames, lengths, eps).log_px_TB)


@every_case
def test_generation_with_given_latents_is_the_network_that_was_scored(system, density, options):
    """From the start, and going on from a prefix: the next observation's density is the one of a longer pass."""
    model, (frames, lengths, eps) = make(system, density, **options), data(density)
    noise = torch.randn(1, B, model.noise_dim, dtype=torch.float64)
    x, y = frames[:-1], frames[1:]
    for n in (0, T - 1):
        start = model.infer(x[:n], y[:n], lengths.clamp(max=n), eps[:n]) if n else None
        z = torch.cat([start.z_TBZ if n else eps[:0], eps[n : n + 1]])
        drawn = model.generate(eps[:1], noise, z_TBZ=z[n:], state=start.state if n else None, x_BX=frames[n])
        whole_eps = eps[: n + 1]
        if model.has_latents:
            whole_eps = noise_that_gives(model, frames[: n + 2], lengths.clamp(max=n + 1), z)
        scored = model.reconstruct(x[: n + 1], y[: n + 1], lengths.clamp(max=n + 1), whole_eps)
        expected = scored.sample(noise.expand(n + 1, -1, -1))[n]
        torch.testing.assert_close(drawn.x_TBX[0], expected.to(drawn.x_TBX.dtype))


@every_case
def test_generation_goes_on_where_it_stopped(system, density, options):
    model, (frames, _, eps) = make(system, density, **options), data(density)
    noise = torch.randn(T, B, model.noise_dim, dtype=torch.float64)
    begin = frames[0] if density == "categorical" else None
    whole = model.generate(eps, noise, x_BX=begin)
    assert whole.x_TBX.shape == frames[1:].shape
    assert whole.x_TBX.is_floating_point() == frames.is_floating_point()
    first = model.generate(eps[:4], noise[:4], x_BX=begin)
    second = model.generate(eps[4:], noise[4:], state=first.state, x_BX=first.x_TBX[-1])
    torch.testing.assert_close(torch.cat([first.x_TBX, second.x_TBX]), whole.x_TBX)


@every_case
def test_autocast_keeps_terms_wide_and_near(system, density, options):
    wide = torch.float32
    model, (frames, lengths, eps) = make(system, density, wide, hidden=32, **options), data(density, dtype=wide)
    exact = run(model, frames, lengths, eps)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(model, frames, lengths, eps)
        model.generate(eps, torch.randn(T, B, model.noise_dim), x_BX=frames[0])
    for a, b in zip(exact[:5], narrow[:5], strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() <= 0.03 * a.norm()
    assert not torch.equal(exact.log_px_TB, narrow.log_px_TB)
    objective(narrow, torch.ones(T, B, dtype=torch.bool), Weights(0.5, 0.1, 0.1, 0.0), B).total.backward()
    assert all(p.grad is not None and p.grad.dtype == wide for p in model.parameters())


@every_system
def test_every_schedule_of_weights_serves_every_system(system):
    model, (frames, lengths, eps) = make(system), data()
    mask = torch.ones(T, B, dtype=torch.bool)
    for weights in (Weights(0.0, 0.0, 0.0, 0.0), Weights(0.2, 0.5, 0.5, 0.0), Weights(1.0, 0.0, 1.0, 0.3)):
        loss = objective(run(model, frames, lengths, eps), mask, weights, B)
        model.zero_grad()
        loss.total.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if not model.has_latents:
        assert torch.equal(loss.sums["elbo_nats"], loss.sums["log_px_nats"])


@every_system
def test_a_mixture_of_one_is_the_gaussian(system):
    gaussian, mixture = make(system), make(system, "mixture", mixture_components=1)
    weights = mixture.state_dict()
    for name, value in gaussian.state_dict().items():
        if value.shape == weights[name].shape:
            weights[name].copy_(value)
        else:  # the output layers: one log-weight comes first, and any will do
            weights[name][1:] = value
    frames, lengths, eps = data()
    for ours, theirs in zip(
        run(mixture, frames, lengths, eps)[:5], run(gaussian, frames, lengths, eps)[:5], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@every_system
def test_build_is_a_function_of_the_seed_alone(system):
    config = ModelConfig(system=system, **SIZES)
    before = torch.get_rng_state()
    one = build(config, X, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    same, other = (build(config, X, seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@every_case
def test_parameters_are_counted_by_part(system, density, options):
    model = make(system, density, **options)
    counts = parameter_counts(model)
    assert counts.pop("total") == sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert {"output"} < counts.keys() <= {name.split(".")[0] for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "categorical"}, "model.embed_dim = 0: tokens"),
        ({"system": "rnn", "label_classes": 2}, "model.label_classes = 2: model.system = rnn"),
        ({"system": "vrnn", "output_skip": True}, "model.output_skip = true: a switch of zforcing"),
        ({"layer_norm_z": True, "recurrence": "bptt"}, "model.recurrence = bptt: does not know"),
        ({"system": "vrnn", "vrnn_features": True, "recurrence": "native"}, "model.recurrence = native: does not know"),
        ({"system": "srnn", "vrnn_features": True}, "model.vrnn_features = true: a switch of vrnn"),
    ],
)
def test_choices_that_exclude_each_other_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options)
