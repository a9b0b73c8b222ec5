"""Batches of frames on the device: order x store, with no state but the step.

T time (frames), B batch (rows), X samples of a frame, S samples of a row (one frame more than is scored).
What a frame is depends on the store's kind: `data.frame_samples` samples of sound, a pixel, a word.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zfdist.config import DataConfig
from zfdist.data.kinds import NO_LABEL
from zfdist.data.order import Frames, Order, Places
from zfdist.data.store import Store
from zfdist.data.views import sequences_of

Int64s = NDArray[np.int64]
Job = TypeVar("Job")
Result = TypeVar("Result")

PADDED_FRAMES = 16_384
"""Most frames, padding included, of an evaluation batch of more than one row, where rows may be cut."""


class Batch(NamedTuple):
    """Sequences padded to one length, time-major; `x_TBX` and `y_TBX` may share memory.

    Of sentences they are not float32 [T, B, X] but int64 [T, B], ids of words: x = <s> w_1 .. w_n and
    y = w_1 .. w_n </s>, 0 (<pad>) where padded. Of images X = 1: y are all pixels, 0 or 1, and x_1 is 0.
    """

    x_TBX: Tensor
    """Inputs x_1 .. x_T, float32, normalised by the manifest's mean and std; 0 where padded."""
    y_TBX: Tensor
    """Targets x_2 .. x_{T+1}, likewise."""
    lengths_B: Tensor
    """Scored frames of each row, int64; 0 for a dummy row."""
    positions_B: Tensor
    """Noise position of each row, int64: place in the global batch (training), sequence id (evaluation)."""
    ids_B: Tensor
    """Sequence id in the view, int64; -1 for a dummy row."""
    num_sequences: int
    """Real sequences of the global batch (training), of this batch (evaluation)."""
    num_frames: int
    """Scored frames of the global batch (training), of this batch (evaluation)."""
    labels_B: Tensor | None = None
    """Label of each row, int64, -1 where unknown and for dummy rows; None if the data have no labels."""

    @property
    def mask_TB(self) -> Tensor:
        """True where a frame is scored."""
        times_T = torch.arange(self.x_TBX.shape[0], device=self.lengths_B.device)
        return times_T[:, None] < self.lengths_B


class _Rows(NamedTuple):
    """The rows of a rank as they come from the store, on the host; all micro-batches of a step in one."""

    rows_BS: Tensor
    numbers_KB: Tensor
    """Frames, positions, ids and, if the data have any, labels: together, as each copy to a device is a wait."""
    num_sequences: int
    num_frames: int


class TrainLoader:
    """The training batches of one rank.

    Rank r of W has places r, r + W, .. of every global batch. All ranks have equal shapes: as many rows as the fullest
    rank, rounded up to a multiple of `accumulation_steps`, the missing ones dummies; as many frames as the longest
    sequence of the global batch has.
    """

    def __init__(
        self,
        store: Store,
        config: DataConfig,
        *,
        seed: int,
        rank: int,
        world_size: int,
        accumulation_steps: int,
        device: torch.device,
    ) -> None:
        """Raises OrderError if the view does not fit the data or has fewer sequences than a global batch."""
        self._sequences = sequences_of(store, config, "train", config.train_view)
        self._order = Order(
            Frames(self._sequences),
            global_batch=config.global_batch,
            window_batches=config.window_batches,
            seed=seed,
        )
        self._store = store
        self._config = config
        self._device = device
        self._accumulation_steps = accumulation_steps
        rows = -(-config.global_batch // world_size)
        rows += -rows % accumulation_steps
        # Micro-batch i takes every accumulation_steps-th row, so that dummies and lengths are spread evenly.
        self._places = (np.arange(rows) * world_size + rank).reshape(-1, accumulation_steps).T.ravel()

    @property
    def num_sequences(self) -> int:
        """Sequences of the view."""
        return len(self._sequences)

    @property
    def batches_per_epoch(self) -> int:
        """Steps in which every sequence comes once, but for the remainder that fills no global batch."""
        return self._order.batches_per_epoch

    def global_ids(self, step: int) -> Int64s:
        """Return the sequence ids of the global batch of a step, in the order of their places."""
        return self._order.ids(step)

    def batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step: a pure function of (seed, step)."""
        return self._finished(self._gathered(step))

    def iterate(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Return the batches of steps start_step .. stop_step - 1, made `prefetch_batches` ahead by a thread."""
        steps, depth = range(start_step, stop_step), self._config.prefetch_batches
        if self._device.type == "cpu":
            return _ahead(steps, self.batches, depth)
        # The copy to a GPU and the work there belong to the stream that trains.
        return (self._finished(rows) for rows in _ahead(steps, self._gathered, depth))

    def _gathered(self, step: int) -> _Rows:
        """Read this rank's rows of a step from the store."""
        global_ids = self._order.ids(step)
        global_frames = self._sequences.at(global_ids).frames
        is_real = self._places < len(global_ids)
        ids = np.where(is_real, global_ids[np.minimum(self._places, len(global_ids) - 1)], -1)
        places = self._sequences.at(np.maximum(ids, 0))
        frames, width = np.where(is_real, places.frames, 0), int(global_frames.max())
        labels = _labels(self._store, "train", places, ids)
        return _Rows(
            _read(self._store, "train", places, width, self._config.frame_samples, self._device),
            _numbers(frames, self._places, ids, labels, self._device),
            len(global_ids),
            int(global_frames.sum()),
        )

    def _finished(self, rows: _Rows) -> list[Batch]:
        """Bring rows to the device, cut into micro-batches."""
        count = self._accumulation_steps
        return _batches(rows, count, self._store, self._config.frame_samples, self._device)


def evaluation_batches(
    store: Store, config: DataConfig, split: str, *, rank: int, world_size: int, device: torch.device
) -> Iterator[Batch]:
    """Yield this rank's share of a split: over all ranks every sequence exactly once, and no dummy rows.

    The batches are cut from the sequences sorted by length, at most `data.eval_batch` rows (where rows may be cut, as
    nobody chose their lengths, also PADDED_FRAMES frames) each, alike for every world size, and dealt to the ranks so
    that their work is even. A rank may get none.
    """
    sequences = sequences_of(store, config, split, config.eval_view)
    all_frames = sequences.all().frames

    def gathered(ids: Int64s) -> _Rows:
        places = sequences.at(ids)
        frames = places.frames
        rows = _read(store, split, places, int(frames.max()), config.frame_samples, device)
        numbers = _numbers(frames, ids, ids, _labels(store, split, places, ids), device)
        return _Rows(rows, numbers, len(ids), int(frames.sum()))

    is_cut = "segments" in store.kind.sequences
    most_frames = PADDED_FRAMES if is_cut else config.eval_batch * int(all_frames.max(initial=0))
    shares = _evaluation_shares(all_frames, config.eval_batch, most_frames, world_size)
    for rows in _ahead(shares[rank], gathered, config.prefetch_batches):
        yield from _batches(rows, 1, store, config.frame_samples, device)


def _evaluation_shares(frames: Int64s, most_rows: int, most_frames: int, world_size: int) -> list[list[Int64s]]:
    """Cut all sequences into batches of like lengths and deal them out: `[rank][batch]` -> sequence ids."""
    by_length = np.argsort(-frames, kind="stable")
    shares: list[list[Int64s]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    start = 0
    while start < len(by_length):
        longest = int(frames[by_length[start]])
        ids = by_length[start : start + max(1, min(most_rows, most_frames // longest))]
        least = loads.index(min(loads))
        shares[least].append(ids)
        loads[least] += longest * len(ids)
        start += len(ids)
    return shares


def _read(
    store: Store,
    split: str,
    places: Places,
    frames: int,
    frame_samples: int,
    device: torch.device,
) -> Tensor:
    """Gather `frames` + 1 frames of each sequence, [len(places), samples]; rows of dummies hold anything."""
    recordings = places.recordings
    width = (frames + 1) * frame_samples - store.kind.added
    rows_BS = store.gather(split, recordings, places.starts, width)
    if store.kind.added:
        rows_BS = store.kind.framed(rows_BS, np.minimum(store.lengths(split)[recordings], width))
    return _sendable(torch.from_numpy(rows_BS), device)


def _sendable(tensor: Tensor, device: torch.device) -> Tensor:
    """Return it in pinned memory for a GPU: only a copy from there runs beside the computation of the step before."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _numbers(
    frames_B: Int64s, positions_B: Int64s, ids_B: Int64s, labels_B: Int64s | None, device: torch.device
) -> Tensor:
    known = [frames_B, positions_B, ids_B] + ([] if labels_B is None else [labels_B])
    return _sendable(torch.from_numpy(np.stack(known)), device)


def _labels(store: Store, split: str, places: Places, ids: Int64s) -> Int64s | None:
    labels = store.labels(split)
    if labels is None:
        return None
    return np.where(ids >= 0, labels[places.recordings], NO_LABEL)


def _batches(rows: _Rows, count: int, store: Store, frame_samples: int, device: torch.device) -> list[Batch]:
    """Bring rows to the device, and cut them into `count` batches that are time-major and zero where padded."""
    lengths = rows.numbers_KB[0]  # on the host, where they can be looked at
    sent = [tensor.to(device, non_blocking=True) for tensor in (rows.rows_BS, rows.numbers_KB)]
    parts = zip(lengths.chunk(count), sent[0].chunk(count), sent[1].chunk(count, dim=1), strict=True)
    result = []
    for lengths, rows_BS, numbers_KB in parts:
        frames_TBX = rows_BS.t().long() if store.kind.has_vocabulary else _normalised(rows_BS, store, frame_samples)
        x_TBX, y_TBX = frames_TBX[:-1], frames_TBX[1:]
        lengths_B, positions_B, ids_B, *labels = numbers_KB
        if bool((lengths != x_TBX.shape[0]).any()):
            is_padding_TB = torch.arange(x_TBX.shape[0], device=device)[:, None] >= lengths_B
            is_padding_TBX = is_padding_TB.view(*is_padding_TB.shape, *[1] * (x_TBX.ndim - 2))
            x_TBX, y_TBX = x_TBX.masked_fill(is_padding_TBX, 0), y_TBX.masked_fill_(is_padding_TBX, 0)
        known = (x_TBX, y_TBX, lengths_B, positions_B, ids_B, rows.num_sequences, rows.num_frames)
        result.append(Batch(*known, labels[0] if labels else None))
    return result


def _normalised(rows_BS: Tensor, store: Store, frame_samples: int) -> Tensor:
    """Return rows as frames [T + 1, B, X], less the mean and over the standard deviation."""
    rows_BTX = rows_BS.view(rows_BS.shape[0], -1, frame_samples)
    frames_TBX = torch.empty(rows_BTX.shape[1], rows_BTX.shape[0], frame_samples, device=rows_BS.device)
    # Converts, subtracts and transposes in one pass over memory.
    return torch.sub(rows_BTX.transpose(0, 1), store.mean, out=frames_TBX).div_(store.std)


def _ahead(jobs: Iterable[Job], work: Callable[[Job], Result], depth: int) -> Iterator[Result]:
    """Yield `work(job)` for each job, done up to `depth` jobs ahead by one thread; depth 0 works when asked.

    What `work` raises is raised here, in its turn. The thread ends when the iterator is used up, closed or dropped.
    """
    if depth == 0:
        yield from map(work, jobs)
        return
    rest = iter(jobs)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="zfdist-prefetch")
    queue: deque[Future[Result]] = deque()
    try:
        queue.extend(thread.submit(work, job) for job in islice(rest, depth))
        while queue:
            result = queue.popleft().result()
            queue.extend(thread.submit(work, job) for job in islice(rest, 1))
            yield result
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
