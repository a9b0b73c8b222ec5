"""What a trained network has to say: drawn from the prior, going on from a prefix, rebuilt, or between two sequences.

`samples`, `continued`, `rebuilt` and `interpolated` give observations in the model's own units: frames or bits
[T, B, X], tokens [T, B]. The others are the same as sound: float32 arrays [sequences, samples] in [-1, 1), ready for
an audio writer; `normalisation` is the checkpoint's, {"mean": .., "std": ..} in int16 units.

`temperature` (>= 0) scales the standard deviation of the latents; that of the observations given the latents is
`x_temperature` or, of sound, `frame_noise`: 1 draws, 0 takes the likeliest. Sequence i depends on the seed and its
position only. Words of `never` have probability 0, and the others what they have without them.

Shapes: T time, B batch, X values of a frame, Z latent, N noise of an observation, W mixtures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zfdist import seeding
from zfdist.data.loader import Batch
from zfdist.model.kernels import matmul_backend
from zfdist.model.networks.network import Network
from zfdist.model.terms import Inferred

Waveforms = NDArray[np.float32]

_FULL_SCALE = 32768.0


@torch.no_grad()
def samples(
    model: Network,
    *,
    sequences: int,
    steps: int,
    seed: int,
    temperature: float = 1.0,
    x_temperature: float = 1.0,
    first_B: Tensor | None = None,
    never: Sequence[int] = (),
) -> Tensor:
    """Draw `sequences` sequences of `steps` observations, from the zero state and the input `first_B`.

    The default input is the mean frame or bits of 0; tokens have none.
    """
    eps_TBZ, eps_TBN = _noise(model, torch.arange(sequences, device=_device(model)), steps, seed)
    return _generated(model, never, temperature * eps_TBZ, eps_TBN, temperature=x_temperature, x_BX=first_B)


@torch.no_grad()
def continued(
    model: Network,
    batch: Batch,
    *,
    steps: int,
    seed: int,
    temperature: float = 1.0,
    x_temperature: float = 1.0,
    never: Sequence[int] = (),
) -> Tensor:
    """Go on from each sequence of `batch` for `steps` observations: posterior means over the prefix, then the prior.

    Returns the new observations only. All sequences must have the full length of the batch.
    """
    if bool((batch.lengths_B != batch.x_TBX.shape[0]).any()):
        raise ValueError("continuations need sequences of one length: cut them to the shortest first")
    state = _inferred(model, batch, _posterior_noise(model, batch, None)).state
    eps_TBZ, eps_TBN = _noise(model, batch.positions_B, steps, seed)
    drawn = {"temperature": x_temperature, "state": state, "x_BX": batch.y_TBX[-1]}
    return _generated(model, never, temperature * eps_TBZ, eps_TBN, **drawn)


@torch.no_grad()
def rebuilt(model: Network, batch: Batch, *, seed: int | None = None, never: Sequence[int] = ()) -> Tensor:
    """Return the likeliest observations given latents from the posterior and the true observations before them.

    Latents are posterior means, or with a `seed` posterior samples.
    """
    eps_TBZ = _posterior_noise(model, batch, seed)
    with matmul_backend.float32(_device(model)):
        density = model.without(never).reconstruct(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)
    return density.sample(eps_TBZ.new_zeros(*eps_TBZ.shape[:2], model.noise_dim), temperature=0.0)


@torch.no_grad()
def interpolated(
    model: Network,
    batch: Batch,
    weights: Sequence[float],
    *,
    seed: int,
    x_temperature: float = 0.0,
    never: Sequence[int] = (),
) -> Tensor:
    """Decode mixtures of the latents of two sequences, (1 - w) z + w z' step by step, one sequence for each weight.

    `batch` holds the two; their latents are posterior samples, and where one has ended the other's stand alone. Every
    sequence begins as the first one and has the length of the longer; all share the noise of their observations.
    """
    if len(batch.lengths_B) != 2:
        raise ValueError(f"an interpolation needs two sequences, got {len(batch.lengths_B)}")
    eps_TBZ = _posterior_noise(model, batch, seed)
    z_T2Z = _inferred(model, batch, eps_TBZ).z_TBZ[: int(batch.lengths_B.max())]
    first_TZ, second_TZ = z_T2Z.unbind(1)
    ended_T2 = torch.arange(len(z_T2Z), device=z_T2Z.device)[:, None] >= batch.lengths_B
    share_W = torch.tensor(weights, dtype=z_T2Z.dtype, device=z_T2Z.device)
    share_TW = share_W.expand(len(z_T2Z), -1).clone()
    share_TW[ended_T2[:, 0]], share_TW[ended_T2[:, 1]] = 1.0, 0.0
    z_TWZ = torch.lerp(first_TZ[:, None], second_TZ[:, None], share_TW[..., None])
    key = seeding.key(seed, "generate/x")
    eps_TBN = seeding.normals(key, torch.zeros_like(batch.positions_B[:1]), len(z_TWZ), model.noise_dim)
    first_WX = batch.x_TBX[0, :1].expand(len(weights), *batch.x_TBX.shape[2:])
    eps_TWN = eps_TBN.expand(-1, len(weights), -1)
    return _generated(model, never, z_TWZ, eps_TWN, z_TBZ=z_TWZ, temperature=x_temperature, x_BX=first_WX)


def speech(
    model: Network,
    normalisation: Mapping[str, float],
    *,
    sequences: int,
    frames: int,
    seed: int,
    temperature: float = 1.0,
    frame_noise: float = 1.0,
) -> Waveforms:
    """Draw `sequences` waveforms of `frames` frames from the model, from the zero state and a mean frame."""
    drawn_TBX = samples(
        model, sequences=sequences, steps=frames, seed=seed, temperature=temperature, x_temperature=frame_noise
    )
    return waveforms(drawn_TBX, normalisation)


def continuations(
    model: Network,
    batch: Batch,
    normalisation: Mapping[str, float],
    *,
    frames: int,
    seed: int,
    temperature: float = 1.0,
    frame_noise: float = 1.0,
) -> Waveforms:
    """Go on from each sequence of `batch` for `frames` frames, as `continued`."""
    drawn_TBX = continued(model, batch, steps=frames, seed=seed, temperature=temperature, x_temperature=frame_noise)
    return waveforms(drawn_TBX, normalisation)


def reconstructions(
    model: Network, batch: Batch, normalisation: Mapping[str, float], *, seed: int | None = None
) -> list[Waveforms]:
    """Rebuild each sequence of `batch`, as `rebuilt`.

    Returns one array [samples] per sequence, as long as the sequence; `originals` gives what they compare with.
    """
    return _cut(waveforms(rebuilt(model, batch, seed=seed), normalisation), batch, model.x_dim)


def originals(batch: Batch, normalisation: Mapping[str, float]) -> list[Waveforms]:
    """Return the scored frames of each sequence of `batch` as they were recorded."""
    return _cut(waveforms(batch.y_TBX, normalisation), batch, batch.y_TBX.shape[2])


def waveforms(x_TBX: Tensor, normalisation: Mapping[str, float]) -> Waveforms:
    """Join frames in normalised units to waveforms [B, T * X], clipped to what int16 can hold."""
    pcm_BTX = x_TBX.transpose(0, 1).double() * normalisation["std"] + normalisation["mean"]
    full = pcm_BTX.clamp(-_FULL_SCALE, _FULL_SCALE - 1) / _FULL_SCALE
    return np.asarray(full.flatten(1).float().cpu().numpy(), dtype=np.float32)


def _inferred(model: Network, batch: Batch, eps_TBZ: Tensor) -> Inferred:
    with matmul_backend.float32(_device(model)):
        return model.infer(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps_TBZ)


def _generated(model: Network, never: Sequence[int], eps_TBZ: Tensor, eps_TBN: Tensor, **options: Any) -> Tensor:
    """Run `Network.generate`, with the products that are fastest step by step."""
    multiplications = eps_TBN.shape[1] * sum(parameter.numel() for parameter in model.parameters())
    with matmul_backend.float32(_device(model), onednn=multiplications >= matmul_backend.FROM_MULTIPLICATIONS):
        return model.without(never).generate(eps_TBZ, eps_TBN, **options).x_TBX


def _cut(joined: Waveforms, batch: Batch, x_dim: int) -> list[Waveforms]:
    return [wave[: length * x_dim] for wave, length in zip(joined, batch.lengths_B.tolist(), strict=True)]


def _noise(model: Network, positions_B: Tensor, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    latent, observed = seeding.key(seed, "generate/z"), seeding.key(seed, "generate/x")
    eps_TBZ = seeding.normals(latent, positions_B, steps, model.config.z_dim)
    return eps_TBZ, seeding.normals(observed, positions_B, steps, model.noise_dim)


def _posterior_noise(model: Network, batch: Batch, seed: int | None) -> Tensor:
    """Return the noise of posterior samples, or zeros for posterior means."""
    steps, z_dim = len(batch.x_TBX), model.config.z_dim
    if seed is None:
        return torch.zeros(steps, len(batch.lengths_B), z_dim, device=_device(model))
    return seeding.normals(seeding.key(seed, "reconstruct"), batch.positions_B, steps, z_dim)


def _device(model: Network) -> torch.device:
    return next(model.parameters()).device
