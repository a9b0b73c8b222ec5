"""Samples, continuations, reconstructions and interpolations of every system and density."""

import pytest
import torch
from small_systems import DENSITIES, SYSTEMS, T, X, data, make

from zfdist import seeding
from zfdist.data.loader import Batch
from zfdist.evaluation import generate
from zfdist.model.kernels import matmul_backend

every_system = pytest.mark.parametrize("system", SYSTEMS)
every_density = pytest.mark.parametrize("density", DENSITIES)


def batch_of(density, lengths):
    frames, _, _ = data(density, batch=len(lengths), dtype=torch.float32)
    rows = torch.arange(len(lengths))
    return Batch(frames[:-1], frames[1:], torch.tensor(lengths), rows, rows, len(lengths), sum(lengths))


@every_density
@every_system
def test_samples_depend_on_the_seed_and_their_place_only(system, density):
    model = make(system, density, torch.float32)

    def drawn(count, seed):
        first = torch.ones(count, dtype=torch.int64) if density == "categorical" else None
        return generate.samples(model, sequences=count, steps=5, seed=seed, first_B=first)

    few, many, other = drawn(2, 1), drawn(4, 1), drawn(2, 2)
    assert few.shape == ((5, 2) if density == "categorical" else (5, 2, X))
    torch.testing.assert_close(few, many[:, :2])
    assert not torch.equal(few, other)
    assert few.is_floating_point() == (density != "categorical")


@every_density
@every_system
def test_greedy_samples_are_all_alike_and_begin_where_they_are_told(system, density):
    model = make(system, density, torch.float32)
    first = torch.tensor([1, 1, 3]) if density == "categorical" else torch.eye(X)[[0, 0, 1]]
    drawn = generate.samples(model, sequences=3, steps=6, seed=0, temperature=0.0, x_temperature=0.0, first_B=first)
    torch.testing.assert_close(drawn[:, 0], drawn[:, 1])
    if density in ("gaussian", "mixture"):
        assert not torch.allclose(drawn[:, 0], drawn[:, 2])


@every_density
@every_system
def test_continuations_and_reconstructions_have_the_shape_of_their_data(system, density):
    model, batch = make(system, density, torch.float32), batch_of(density, [T, T])
    assert generate.continued(model, batch, steps=3, seed=1).shape == batch.x_TBX[:3].shape
    rebuilt = generate.rebuilt(model, batch)
    assert rebuilt.shape == batch.y_TBX.shape
    assert rebuilt.dtype == batch.y_TBX.dtype
    with pytest.raises(ValueError, match="one length"):
        generate.continued(model, batch_of(density, [T, 2]), steps=3, seed=1)


@every_density
@every_system
def test_the_ends_of_an_interpolation_are_the_sequences_own_latents(system, density):
    model, batch = make(system, density, torch.float32), batch_of(density, [4, T])
    weights = [0.0, 0.25, 1.0]
    drawn = generate.interpolated(model, batch, weights, seed=3)
    assert drawn.shape == (T, 3, *batch.x_TBX.shape[2:])
    eps = seeding.normals(seeding.key(3, "reconstruct"), batch.positions_B, T, model.config.z_dim)
    z = model.infer(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps).z_TBZ.detach().clone()
    z[4:, 0] = z[4:, 1]  # the first has ended
    mixed = torch.stack([(1 - w) * z[:, 0] + w * z[:, 1] for w in weights], dim=1)
    noise = torch.zeros(T, 3, model.noise_dim)
    first = batch.x_TBX[0, :1].expand(3, *batch.x_TBX.shape[2:])
    expected = model.generate(mixed, noise, z_TBZ=mixed, temperature=0.0, x_BX=first)
    torch.testing.assert_close(drawn, expected.x_TBX)
    sampled = generate.interpolated(model, batch, [0.3, 0.3], seed=3, x_temperature=1.0)
    torch.testing.assert_close(sampled[:, 0], sampled[:, 1])


def test_tokens_need_a_first_one():
    with pytest.raises(ValueError, match="give the first ones"):
        generate.samples(make("rnn", "categorical", torch.float32), sequences=1, steps=2, seed=0)


def test_an_interpolation_is_between_two():
    with pytest.raises(ValueError, match="two sequences, got 3"):
        generate.interpolated(make(), batch_of("gaussian", [T, T, T]), [0.5], seed=0)


@every_system
def test_words_that_are_never_to_be_written_are_not(system):
    model, batch = make(system, "categorical", torch.float32), batch_of("categorical", [T, T])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = torch.ones(40, dtype=torch.int64)

    def everything(never):
        return {
            "samples": generate.samples(model, sequences=40, steps=5, seed=1, first_B=first, never=never),
            "continued": generate.continued(model, batch, steps=40, seed=1, never=never),
            "rebuilt": generate.rebuilt(model, batch, never=never),
            "mixed": generate.interpolated(model, batch, [0.1, 0.6], seed=1, x_temperature=1.0, never=never),
        }

    free = everything(())
    never = sorted(set(free["rebuilt"].flatten().tolist()) | set(free["samples"][0].tolist()))[:2]
    assert any(token in drawn for drawn in free.values() for token in never), "else this measures nothing"
    for drawn in everything(never).values():
        assert not any(token in drawn for token in never)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_products_of_a_loop_go_to_onednn_where_a_step_has_enough_of_them(monkeypatch):
    model, asked, original = make("rnn", "gaussian", torch.float32), [], matmul_backend.float32

    def float32(device, *, onednn=True):
        asked.append(onednn)
        return original(device, onednn=onednn)

    weights = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(matmul_backend, "float32", float32)
    monkeypatch.setattr(matmul_backend, "FROM_MULTIPLICATIONS", 3 * weights)
    generate.samples(model, sequences=2, steps=2, seed=0)
    generate.samples(model, sequences=3, steps=2, seed=0)
    generate.continued(model, batch_of("gaussian", [T, T]), steps=2, seed=0)
    generate.rebuilt(model, batch_of("gaussian", [T, T]))
    assert asked == [False, True, True, False, True]
