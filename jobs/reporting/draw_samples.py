"""What a trained network generates, as pieces to hear, see or read, whatever its data are.

Shapes: T time, B batch, X values of a frame; words have no X.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zfdist.config import DataConfig
from zfdist.data.kinds import PAD, START, UNKNOWN
from zfdist.data.loader import Batch, evaluation_batches
from zfdist.data.store import Store
from zfdist.data.views import sequences_of
from zfdist.evaluation import generate
from zfdist.evaluation.evaluate import EvaluationError, Loaded

What = Literal["samples", "continuations", "reconstructions", "interpolation"]
WEIGHTS = tuple(i / 10 for i in range(11))
"""Of the second sequence of an interpolation: 0, 0.1 .. 1."""
_PER_ROW = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be generated."""

    what: What
    split: str
    num: int
    """Sequences; of an interpolation there are always two."""
    frames: int
    """Frames, pixels or words of what is new; of rebuilt and mixed sequences, the most."""
    prefix_frames: int
    """Frames, pixels or words that a continuation begins with."""
    between: tuple[int, int] | None = None
    """Sequences of the split to interpolate between; None for the first two."""
    chosen: tuple[int, ...] | None = None
    """Sequences of the split to go on from or rebuild; None for the first `num` that are long enough."""
    temperature_z: float = 1.0
    temperature_x: float = 1.0
    with_unknown: bool = True
    """Whether <unk> may be written for a word that the network does not know."""
    seed: int


class Piece(NamedTuple):
    """One sequence, in the model's own units."""

    name: str
    title: str
    row: int
    """Where it stands beside others in a picture."""
    values_TX: Tensor
    given: int = 0
    """Its first frames that were not generated."""


def usual_frames(store: Store, data: DataConfig, what: What, prefix_frames: int | None = None) -> tuple[int, int]:
    """Return with how many frames a continuation begins, and how many are new, where nobody says so."""
    kind = store.kind
    per_second = store.sample_rate / data.frame_samples
    prefix, new = (max(1, round(amount * (per_second or 1))) for amount in (kind.prefix, kind.new))
    prefix = prefix_frames or prefix
    if kind.width is not None and what == "continuations":
        new = max(1, new - prefix)
    return prefix, new


def pieces(loaded: Loaded, store: Store, request: Request) -> list[Piece]:
    """Return what is asked for; a function of the weights, the data and the request alone.

    Raises:
        EvaluationError: if the split has too few or too short sequences, or the network has no latents to mix.
    """
    loaded.model.cpu()
    make = {
        "samples": _samples,
        "continuations": _continuations,
        "reconstructions": _reconstructions,
        "interpolation": _interpolation,
    }[request.what]
    return list(make(loaded, store, request))


def _samples(loaded: Loaded, store: Store, request: Request) -> Iterator[Piece]:
    drawn = generate.samples(
        loaded.model,
        sequences=request.num,
        steps=request.frames,
        seed=request.seed,
        temperature=request.temperature_z,
        x_temperature=request.temperature_x,
        first_B=torch.full((request.num,), START) if store.kind.has_vocabulary else None,
        never=_never(store, request),
    )
    for i, values_TX in enumerate(drawn.unbind(1)):
        yield Piece(f"sample-{i}", f"sample {i}", i // _PER_ROW, values_TX)


def _continuations(loaded: Loaded, store: Store, request: Request) -> Iterator[Piece]:
    prefix = request.prefix_frames
    ids = list(request.chosen or _first(loaded, store, request, request.num, at_least=prefix))
    whole = _sequences(loaded, store, request.split, ids)
    heard = whole._replace(
        x_TBX=whole.x_TBX[:prefix], y_TBX=whole.y_TBX[:prefix], lengths_B=torch.full_like(whole.lengths_B, prefix)
    )
    drawn = generate.continued(
        loaded.model,
        heard,
        steps=request.frames,
        seed=request.seed,
        temperature=request.temperature_z,
        x_temperature=request.temperature_x,
        never=_never(store, request),
    )
    for row, i in enumerate(ids):
        recorded = whole.y_TBX[: int(whole.lengths_B[row]), row]
        place = 2 * row // _PER_ROW
        yield Piece(f"original-{i}", f"original {i}", place, recorded[: prefix + request.frames])
        joined = torch.cat([heard.y_TBX[:, row], drawn[:, row]])
        yield Piece(f"continuation-{i}", f"{i}, from {prefix} on", place, joined, given=prefix)


def _reconstructions(loaded: Loaded, store: Store, request: Request) -> Iterator[Piece]:
    ids = list(request.chosen or _first(loaded, store, request, request.num))
    batch = _sequences(loaded, store, request.split, ids, most=request.frames)
    rebuilt = generate.rebuilt(loaded.model, batch, never=_never(store, request))
    for row, (i, length) in enumerate(zip(ids, batch.lengths_B.tolist(), strict=True)):
        yield Piece(f"original-{i}", f"original {i}", 2 * row // _PER_ROW, batch.y_TBX[:length, row])
        yield Piece(f"reconstruction-{i}", f"rebuilt {i}", 2 * row // _PER_ROW, rebuilt[:length, row])


def _interpolation(loaded: Loaded, store: Store, request: Request) -> Iterator[Piece]:
    if not loaded.model.has_latents:
        system = loaded.config.model.system
        raise EvaluationError(f"--what interpolation: an {system} has no latents to mix; take a run of another system")
    ids = list(request.between or _first(loaded, store, request, 2))
    batch = _sequences(loaded, store, request.split, ids, most=request.frames)
    for row, (i, length) in enumerate(zip(ids, batch.lengths_B.tolist(), strict=True)):
        yield Piece(f"original-{i}", f"original {i}", 0, batch.y_TBX[:length, row])
    for place, (how, temperature) in enumerate((("greedy", 0.0), ("sampled", request.temperature_x)), start=1):
        mixed = generate.interpolated(
            loaded.model,
            batch,
            WEIGHTS,
            seed=request.seed,
            x_temperature=temperature,
            never=_never(store, request),
        )
        for weight, values_TX in zip(WEIGHTS, mixed.unbind(1), strict=True):
            yield Piece(f"{how}-{weight:.1f}", f"{weight:.1f} {how}", place, values_TX)


def _never(store: Store, request: Request) -> tuple[int, ...]:
    """Return the words that are not to be written: what frames a sentence in the data is nothing to say."""
    if not store.kind.has_vocabulary:
        return ()
    return (PAD, START) if request.with_unknown else (PAD, START, UNKNOWN)


def _first(loaded: Loaded, store: Store, request: Request, num: int, at_least: int = 1) -> list[int]:
    """Return the first `num` sequences of the split that are long enough."""
    data = loaded.config.data
    frames = sequences_of(store, data, request.split, data.eval_view).all().frames
    ids: list[int] = np.flatnonzero(frames >= at_least)[:num].tolist()
    if len(ids) < num:
        raise EvaluationError(
            f"split {request.split!r} of {data.root} has {len(ids)} sequences of {at_least} frames or more, not {num}; "
            "pass a smaller --num or --prefix-frames, or another --split"
        )
    return ids


def _sequences(loaded: Loaded, store: Store, split: str, ids: Sequence[int], most: int | None = None) -> Batch:
    """Return some sequences of a split, of each the first `most` frames, as one padded batch in the order of `ids`."""
    found: dict[int, Batch] = {}
    for batch in evaluation_batches(store, loaded.config.data, split, rank=0, world_size=1, device=torch.device("cpu")):
        found |= {i: batch for i in batch.ids_B.tolist() if i in ids}
        if len(found) == len(set(ids)):
            break
    if missing := set(ids) - found.keys():
        raise EvaluationError(f"split {split!r} of {loaded.config.data.root} has no sequence {min(missing)}")
    rows = [found[i].ids_B.tolist().index(i) for i in ids]
    lengths = [min(int(found[i].lengths_B[row]), most or 2**31) for i, row in zip(ids, rows, strict=True)]
    cut = list(zip((found[i] for i in ids), rows, lengths, strict=True))
    return Batch(
        pad_sequence([batch.x_TBX[:length, row] for batch, row, length in cut]),
        pad_sequence([batch.y_TBX[:length, row] for batch, row, length in cut]),
        torch.tensor(lengths),
        torch.tensor(ids),
        torch.tensor(ids),
        num_sequences=len(ids),
        num_frames=sum(lengths),
    )
