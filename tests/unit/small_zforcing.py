"""A small Z-Forcing network, its data and its parts by name: what the tests of it share."""

import torch

from zfdist.config import ModelConfig
from zfdist.model.networks.zforcing import ZForcing
from zfdist.model.systems import build

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
    unrolled = model._unroll(model.embed(x), model._read_backwards(y, lengths), eps)
    h_before = torch.cat([model.initial_state(x.shape[1]).h_BH[None], unrolled.h_TBH[:-1]])
    output = model.output.density(unrolled.h_TBH)
    return {
        "b": model._read_backwards(y, lengths),
        "mu": unrolled.mu_TBZ,
        "logvar": unrolled.logvar_TBZ,
        "z": unrolled.z_TBZ,
        "h": unrolled.h_TBH,
        "prior": model._prior(h_before, x).mean,
        "output": output.mean,
    }


def steps_that_changed(before, after):
    return {t + 1 for t in range(len(before)) if not torch.equal(before[t], after[t])}


def run_with_z(model, frames, z_TBZ):
    """The generative half, by the cell one step at a time: prior and output at every step for a given z."""
    state, priors, outputs = model.initial_state(frames.shape[1]), [], []
    for x_BX, z_BZ in zip(frames[:-1], z_TBZ, strict=True):
        priors.append(torch.cat(model._prior(state.h_BH, x_BX), dim=-1))
        state = model.recurrence.step(model.input(x_BX), z_BZ, state)
        outputs.append(torch.cat(model.output.density(state.h_BH), dim=-1))
    return torch.stack(priors), torch.stack(outputs)
