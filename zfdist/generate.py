"""Speech from a trained network: drawn from the prior, going on from a recording, or rebuilt from its latents.

Waveforms come back as float32 arrays [sequences, samples] in [-1, 1), ready for an audio writer. A model
speaks in normalised units: `normalisation` is the checkpoint's, {"mean": .., "std": ..} in int16 units.

Shapes: T time, B batch, X samples of a frame, Z latent.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zfdist import seeding
from zfdist.data.loader import Batch
from zfdist.model.zforcing import ZForcing

Waveforms = NDArray[np.float32]

_FULL_SCALE = 32768.0


@torch.no_grad()
def speech(
    model: ZForcing,
    normalisation: Mapping[str, float],
    *,
    sequences: int,
    frames: int,
    seed: int,
    temperature: float = 1.0,
    frame_noise: float = 1.0,
) -> Waveforms:
    """Draw `sequences` waveforms of `frames` frames from the model, from h_0 = 0 and a mean frame.

    `temperature` (>= 0) scales the standard deviation of the latents, `frame_noise` (>= 0) that of the frames given
    the latents; 0 takes means. Sequence i depends on `seed` and i only.
    """
    eps_TBZ, eps_TBX = _noise(model, torch.arange(sequences, device=_device(model)), frames, seed)
    drawn = model.generate(temperature * eps_TBZ, frame_noise * eps_TBX)
    return waveforms(drawn.x_TBX, normalisation)


@torch.no_grad()
def continuations(
    model: ZForcing,
    batch: Batch,
    normalisation: Mapping[str, float],
    *,
    frames: int,
    seed: int,
    temperature: float = 1.0,
    frame_noise: float = 1.0,
) -> Waveforms:
    """Go on from each sequence of `batch` for `frames` frames: posterior over what is heard, then the prior.

    Returns the new frames only. All sequences must have the full length of the batch.
    """
    if bool((batch.lengths_B != batch.x_TBX.shape[0]).any()):
        raise ValueError("continuations need sequences of one length: cut them to the shortest first")
    heard = torch.zeros(*batch.x_TBX.shape[:2], model.config.z_dim, device=_device(model))
    inferred = model.infer(batch.x_TBX, batch.y_TBX, batch.lengths_B, heard)
    eps_TBZ, eps_TBX = _noise(model, batch.positions_B, frames, seed)
    drawn = model.generate(temperature * eps_TBZ, frame_noise * eps_TBX, state=inferred.state, x_BX=batch.y_TBX[-1])
    return waveforms(drawn.x_TBX, normalisation)


@torch.no_grad()
def reconstructions(
    model: ZForcing, batch: Batch, normalisation: Mapping[str, float], *, seed: int | None = None
) -> list[Waveforms]:
    """Rebuild each sequence of `batch`: the mean of every frame given z from the posterior and the frame before it.

    Latents are posterior means, or with a `seed` posterior samples. Returns one array [samples] per sequence, as
    long as the sequence; `originals` gives what they compare with.
    """
    shape = (*batch.x_TBX.shape[:2], model.config.z_dim)
    if seed is None:
        eps_TBZ = torch.zeros(shape, device=_device(model))
    else:
        eps_TBZ = seeding.normals(seeding.key(seed, "reconstruct"), batch.positions_B, shape[0], shape[2])
    density = model.reconstruct(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
    return _cut(waveforms(density.mean, normalisation), batch, model.x_dim)


def originals(batch: Batch, normalisation: Mapping[str, float]) -> list[Waveforms]:
    """Return the scored frames of each sequence of `batch` as they were recorded."""
    return _cut(waveforms(batch.y_TBX, normalisation), batch, batch.y_TBX.shape[2])


def waveforms(x_TBX: Tensor, normalisation: Mapping[str, float]) -> Waveforms:
    """Join frames in normalised units to waveforms [B, T * X], clipped to what int16 can hold."""
    pcm_BTX = x_TBX.transpose(0, 1).double() * normalisation["std"] + normalisation["mean"]
    full = pcm_BTX.clamp(-_FULL_SCALE, _FULL_SCALE - 1) / _FULL_SCALE
    return np.asarray(full.flatten(1).float().cpu().numpy(), dtype=np.float32)


def _cut(joined: Waveforms, batch: Batch, x_dim: int) -> list[Waveforms]:
    return [wave[: length * x_dim] for wave, length in zip(joined, batch.lengths_B.tolist(), strict=True)]


def _noise(model: ZForcing, positions_B: Tensor, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    latent, frame = seeding.key(seed, "generate/z"), seeding.key(seed, "generate/x")
    eps_TBZ = seeding.normals(latent, positions_B, frames, model.config.z_dim)
    return eps_TBZ, seeding.normals(frame, positions_B, frames, model.x_dim)


def _device(model: ZForcing) -> torch.device:
    return next(model.parameters()).device
