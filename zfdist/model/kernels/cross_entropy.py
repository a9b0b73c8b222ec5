"""Log-probabilities of tokens under a large softmax, without its logits for all positions at once.

The product with the vocabulary is made in chunks of positions. Where the logits of all positions are many they are made
anew in the backward pass, so that instead of several tensors [T, B, V] only one chunk is ever held; few are kept.

Shapes: N positions (time and batch), M hidden units, V words.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zfdist.model.kernels.arguments import gradients, prepared
from zfdist.model.kernels.lstm_cell import no_autocast

CHUNK_LOGITS = 2**22
"""Most logits of a chunk (16 MiB in float32)."""
KEPT_LOGITS = 2**24
"""Most logits in all that are kept for the backward pass (64 MiB): a quarter of the products saved."""


class _TokenLogProb(torch.autograd.Function):
    """log softmax(a W' + b) at the targets, in chunks; differentiable once."""

    @staticmethod
    def forward(ctx: Any, a_NM: Tensor, w_VM: Tensor, b_V: Tensor, target_N: Tensor, chunk: int, keep: bool) -> Tensor:
        normaliser_N, picked_N = a_NM.new_empty(len(a_NM)), a_NM.new_empty(len(a_NM))
        kept = []
        for rows in _rows(len(a_NM), w_VM.shape[0], chunk):
            logits_nV = torch.addmm(b_V, a_NM[rows], w_VM.t())
            if keep:
                kept.append(logits_nV)
            picked_N[rows] = logits_nV.gather(1, target_N[rows, None]).squeeze(1)
            normaliser_N[rows] = torch.logsumexp(logits_nV, dim=1)
        ctx.save_for_backward(a_NM, w_VM, b_V, target_N, normaliser_N, *kept)
        ctx.chunk = chunk
        return picked_N - normaliser_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        a_NM, w_VM, b_V, target_N, normaliser_N, *kept = ctx.saved_tensors
        (grad_N,) = gradients("log-probability of tokens", {"log_prob_N": normaliser_N}, given)
        da_NM, dw_VM, db_V = torch.empty_like(a_NM), torch.zeros_like(w_VM), torch.zeros_like(b_V)
        with no_autocast(a_NM):
            for i, rows in enumerate(_rows(len(a_NM), w_VM.shape[0], ctx.chunk)):
                logits_nV = kept[i] if kept else torch.addmm(b_V, a_NM[rows], w_VM.t())
                # d/dlogits = grad * (one at the target - softmax)
                d_nV = torch.sub(logits_nV, normaliser_N[rows, None], out=None if kept else logits_nV)
                d_nV.exp_().mul_(-grad_N[rows, None])
                d_nV.scatter_add_(1, target_N[rows, None], grad_N[rows, None])
                torch.mm(d_nV, w_VM, out=da_NM[rows])
                dw_VM.addmm_(d_nV.t(), a_NM[rows])
                db_V += d_nV.sum(0)
        return da_NM, dw_VM, db_V, None, None, None


def token_log_prob(
    a_NM: Tensor, w_VM: Tensor, b_V: Tensor, target_N: Tensor, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Return log softmax(a W' + b) at `target_N` (whole numbers, 0 .. V - 1): [N], in nats.

    Raises:
        TypeError: or ValueError, as `prepared` of zfdist.model.kernels.arguments.
    """
    a_NM, target_N, w_VM, b_V = prepared(
        "log-probability of tokens", {"a_NM": a_NM}, {"w_VM": w_VM, "b_V": b_V}, whole={"target_N": target_N}
    )
    keep = torch.is_grad_enabled() and len(a_NM) * len(w_VM) <= KEPT_LOGITS
    result: Tensor = _TokenLogProb.apply(a_NM, w_VM, b_V, target_N, chunk_logits, keep)  # type: ignore[no-untyped-call]
    return result


def _rows(positions: int, words: int, chunk_logits: int) -> Iterator[slice]:
    step = max(1, chunk_logits // words)
    return (slice(start, start + step) for start in range(0, positions, step))
