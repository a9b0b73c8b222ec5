"""Which sequences form the global batch of a step: index arithmetic, a pure function of (seed, step).

An epoch is a keyed permutation of the N sequences of a view. Its first (N // G) * G positions are cut into windows of
`window_batches` global batches of G; a window is sorted by (length, position) and cut into batches of like lengths, and
the batches of a window are permuted by a second keyed permutation. The N mod G sequences left over differ by epoch.
The permutation is a Feistel network on integers modulo 2^64, so no release of numpy can change the order, and any
batch of any epoch costs the same.
"""

import hashlib
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zfdist.errors import ZfdistError

Int64s = NDArray[np.int64]

ROUNDS = 8


class OrderError(ZfdistError):
    """A view that cannot fill a global batch; the message names the knob to change."""


class Places(NamedTuple):
    """Where sequences lie: each reads `frames` + 1 frames of a recording and scores the last of them."""

    recordings: Int64s
    """Recording of each sequence."""
    starts: Int64s
    """First sample of each sequence within its recording."""
    frames: Int64s
    """Scored frames of each sequence, at least 1."""


class Sequences:
    """A view over recordings, which are cut into sequences; it holds two numbers a recording and none a sequence."""

    def __init__(self, scored: Int64s, frame_samples: int, segment_frames: int | None) -> None:
        """Cut recordings of so many `scored` frames into `segment_frames` each; None: a recording is a sequence."""
        self._scored = scored
        self._frame_samples = frame_samples
        self._segment_frames = segment_frames
        counts = scored > 0 if segment_frames is None else -(-scored // segment_frames)
        self._ends: Int64s = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_frames(self) -> int:
        """Scored frames of all sequences together."""
        return int(self._scored.sum())

    def at(self, ids: Int64s) -> Places:
        """Return where sequences lie, of ids 0 to len - 1."""
        recordings = np.searchsorted(self._ends, ids, side="right").astype(np.int64, copy=False)
        scored = self._scored[recordings]
        if self._segment_frames is None:
            return Places(recordings, np.zeros(len(ids), np.int64), scored)
        before = np.where(recordings > 0, self._ends[recordings - 1], 0)
        first = (ids - before) * self._segment_frames
        return Places(recordings, first * self._frame_samples, np.minimum(self._segment_frames, scored - first))

    def all(self) -> Places:
        """Return where all sequences lie: 24 bytes each, made anew at every call."""
        return self.at(np.arange(len(self), dtype=np.int64))

    @property
    def recordings(self) -> Int64s:
        """Recording of every sequence."""
        return self.all().recordings

    @property
    def starts(self) -> Int64s:
        """First sample of every sequence within its recording."""
        return self.all().starts

    @property
    def frames(self) -> Int64s:
        """Scored frames of every sequence."""
        return self.all().frames


class Frames:
    """The scored frames of each sequence of a view, found when asked for."""

    def __init__(self, sequences: Sequences) -> None:
        """Look them up in `sequences`."""
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, ids: Int64s) -> Int64s:
        return self._sequences.at(ids).frames


def segments(lengths: Int64s, frame_samples: int, segment_frames: int) -> Sequences:
    """Cut recordings of `lengths` samples into segments of `segment_frames` scored frames.

    A segment reads frames s .. s + segment_frames, s = 0, segment_frames, ..: neighbours share one frame, the last
    target of one and the first input of the next. The last of a recording may be shorter. Recordings of fewer than two
    frames give none.
    """
    return Sequences(_scored(lengths, frame_samples), frame_samples, segment_frames)


def utterances(lengths: Int64s, frame_samples: int) -> Sequences:
    """Take each recording of `lengths` samples as one sequence, if it has two frames; an incomplete one is left out."""
    return Sequences(_scored(lengths, frame_samples), frame_samples, None)


def _scored(lengths: Int64s, frame_samples: int) -> Int64s:
    return np.maximum(lengths // frame_samples - 1, 0)


def view(kind: str, lengths: Int64s, frame_samples: int, segment_frames: int) -> Sequences:
    """Return the view named by `data.train_view` or `data.eval_view`: segments or utterances."""
    if kind == "segments":
        return segments(lengths, frame_samples, segment_frames)
    if kind == "utterances":
        return utterances(lengths, frame_samples)
    raise OrderError(f"unknown view {kind!r}: must be segments or utterances")


def refuse_too_few(sequences: int, global_batch: int) -> None:
    """Raise OrderError if so many sequences do not fill one global batch."""
    if sequences < global_batch:
        raise OrderError(
            f"data.global_batch = {global_batch}: the training split has but {sequences} sequences in this view; "
            f"lower it to at most {sequences}, or prepare more data"
        )


def permutation_key(seed: int, *place: int | str) -> NDArray[np.uint64]:
    """Return the round keys [ROUNDS] of the permutation that belongs to a place, e.g. `(seed, "epoch", 3)`."""
    text = "/".join(["zfdist.order.v1", str(seed), *map(str, place)])
    return np.array(struct.unpack(f"<{ROUNDS}Q", hashlib.blake2b(text.encode(), digest_size=8 * ROUNDS).digest()), "u8")


def permute(positions: NDArray[np.integer], size: int, key: NDArray[np.uint64]) -> Int64s:
    """Map positions in [0, size) through the keyed permutation of range(size); works on any part of it alone.

    A balanced Feistel network on the smallest even number of bits that holds size - 1, at least 2; an image outside the
    range is mapped again until it falls inside (cycle walking), which keeps the map one-to-one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    images = _feistel(positions.astype(np.uint64), half, key)
    outside = np.flatnonzero(images >= size)
    while outside.size:
        images[outside] = _feistel(images[outside], half, key)
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the network to values of 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for round_key in key:
        left, right = right, left ^ (mix(right + round_key) & mask)
    return (left << shift) | right


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Order:
    """The order of training: `ids(step)` gives the global batch of a step, from nothing and for any step."""

    def __init__(self, frames: Int64s | Frames, *, global_batch: int, window_batches: int, seed: int) -> None:
        """Order sequences of `frames` scored frames; raises OrderError if they do not fill one global batch."""
        refuse_too_few(len(frames), global_batch)
        self.batches_per_epoch = len(frames) // global_batch
        self._frames = frames
        self._global_batch = global_batch
        self._window_batches = window_batches
        self._seed = seed
        # The window in use, as (epoch, window, ids): spares sorting it once per batch; never changes a result.
        self._latest: tuple[int, int, Int64s] | None = None

    def ids(self, step: int) -> Int64s:
        """Return the sequence ids [global_batch] of optimizer step `step` >= 0, in position order (shortest first)."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        window, place = divmod(batch, self._window_batches)
        latest = self._latest
        if latest is None or latest[:2] != (epoch, window):
            latest = (epoch, window, self._window(epoch, window))
            self._latest = latest
        ids: Int64s = latest[2][place].copy()
        return ids

    def _window(self, epoch: int, window: int) -> Int64s:
        """Return the batches of a window in the order of their steps: ids [batches, global_batch]."""
        first = window * self._window_batches
        count = min(self._window_batches, self.batches_per_epoch - first)
        positions = np.arange(first * self._global_batch, (first + count) * self._global_batch)
        ids = permute(positions, len(self._frames), permutation_key(self._seed, "epoch", epoch))
        by_length = ids[np.argsort(self._frames[ids], kind="stable")].reshape(count, self._global_batch)
        shuffled = permute(np.arange(count), count, permutation_key(self._seed, "window", epoch, window))
        return by_length[shuffled]
