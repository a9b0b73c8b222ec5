"""The entries into compiled code, each with small arguments by name and the plain torch that says what it gives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import unrolls
from test_cuda_graphs import recorded
from torch import Tensor
from torch.nn import functional as F

from zfdist.model.distributions import Gaussian
from zfdist.model.kernels import (
    cpp_gaussian,
    cpp_latent_chain,
    cpp_lstm_step,
    cpp_recurrence,
    cudnn_persistent,
    manual_backward,
)
from zfdist.model.kernels.core_arguments import ChainCore, Core
from zfdist.model.kernels.cross_entropy import token_log_prob
from zfdist.model.kernels.lstm_cell import State
from zfdist.model.recurrent import latent_chain, lstm, recurrence
from zfdist.model.recurrent.lstm import LSTM

T, B, H, Z, M, V = 4, 3, 4, 2, 5, 6


class Entry(NamedTuple):
    """One way into compiled code: how it is called by named arguments, who defines its numbers, what it is given."""

    run: Callable[..., Sequence[Tensor]]
    reference: Callable[..., Sequence[Tensor]]
    arguments: dict[str, Tensor]
    data: tuple[str, ...]  # names of what may be of another type


def drawn(**shapes):
    generator = torch.Generator().manual_seed(0)
    return {n: 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def core_entry(run):
    core = unrolls.arguments(T, B, H, Z, M)
    named = {n: v.detach() for n, v in core._asdict().items() if isinstance(v, torch.Tensor)}

    def called(unroll):
        return lambda **given: unroll(Core(**given, bound=8.0, operand=given["w_h_GH"].dtype))

    return Entry(called(run), called(recurrence.reference), named, tuple(named)[:5])


def chain_entry(run):
    shapes = {"pq_TBP": (T, B, 2 * M), "eps_TBZ": (T, B, Z), "z_BZ": (B, Z)}
    named = drawn(**shapes, w_z_PZ=(2 * M, Z), w_q_2QM=(2, 2 * Z, M), b_q_2Q=(2, 2 * Z))

    def called(unroll):
        return lambda **given: unroll(ChainCore(**given, bound=8.0, operand=given["w_z_PZ"].dtype))

    return Entry(called(run), called(latent_chain.reference), named, tuple(named)[:3])


def lstm_entry():
    named = drawn(gx_TBG=(T, B, 4 * H), h_BH=(B, H), c_BH=(B, H), w_GH=(4 * H, H))

    def by_torch(gx_TBG, h_BH, c_BH, w_GH):
        net = LSTM(4 * H, H).to(w_GH.dtype)
        weights = (torch.eye(4 * H, dtype=w_GH.dtype), w_GH, torch.zeros_like(w_GH[:, 0]), torch.zeros_like(w_GH[:, 0]))
        state = (h_BH[None], c_BH[None])
        h_TBH, _, c_1BH = torch.lstm(gx_TBG, state, weights, True, 1, 0.0, net.training, False, False)
        return h_TBH, c_1BH[0]

    def run(gx_TBG, h_BH, c_BH, w_GH):
        return lstm._sweeps(gx_TBG, State(h_BH, c_BH), w_GH, None)

    return Entry(run, by_torch, named, ("gx_TBG", "h_BH", "c_BH"))


def step_entry(run):
    named = drawn(gx_BG=(B, 4 * H), z_BZ=(B, Z), h_BH=(B, H), c_BH=(B, H), w_h_GH=(4 * H, H), w_z_GZ=(4 * H, Z))

    def by_torch(gx_BG, z_BZ, h_BH, c_BH, w_h_GH, w_z_GZ):
        return recurrence.cell(gx_BG + h_BH @ w_h_GH.t() + z_BZ @ w_z_GZ.t(), c_BH)

    def stepped(gx_BG, z_BZ, h_BH, c_BH, w_h_GH, w_z_GZ):
        with torch.no_grad():
            return run(w_h_GH, w_z_GZ)(gx_BG, z_BZ, State(h_BH, c_BH))

    return Entry(stepped, by_torch, named, ("gx_BG", "z_BZ", "h_BH", "c_BH"))


def density_entry():
    named = drawn(numbers=(T, B, 2 * Z), value=(T, B, Z))

    def plain(numbers, value):
        mean, raw = numbers.chunk(2, dim=-1)
        return (Gaussian(mean, torch.log(0.1 + raw.exp())).log_prob(value),)

    return Entry(lambda **g: (cpp_gaussian.observation_log_prob(**g, floor=0.1),), plain, named, ("value",))


def token_entry():
    named = drawn(a_NM=(T, M), w_VM=(V, M), b_V=(V,)) | {"target_N": torch.tensor([5, 0, 2, 1])}

    def whole(a_NM, w_VM, b_V, target_N):
        return (-F.cross_entropy(a_NM @ w_VM.t() + b_V, target_N, reduction="none"),)

    return Entry(lambda **g: (token_log_prob(**g),), whole, named, ("a_NM",))


def persistent_entry():
    shapes = {"value_TBD": (T, B, M), "h_BH": (B, H), "c_BH": (B, H)}
    named = drawn(**shapes, w_in_GD=(4 * H, M), w_GH=(4 * H, H), b_in_G=(4 * H,), b_G=(4 * H,))

    def run(value_TBD, h_BH, c_BH, **weights):
        h_TBH, state = cudnn_persistent.run(value_TBD, State(h_BH, c_BH), [*weights.values()], weights["w_GH"].dtype)
        return h_TBH, state.c_BH

    def by_torch(value_TBD, h_BH, c_BH, **weights):
        h_TBH, _, c_1BH = torch.lstm(
            value_TBD, (h_BH[None], c_BH[None]), [*weights.values()], True, 1, 0.0, False, False, False
        )
        return h_TBH, c_1BH[0]

    return Entry(run, by_torch, named, ("value_TBD", "h_BH", "c_BH"))


ENTRIES = {
    "native": core_entry(cpp_recurrence.unroll),
    "bptt": core_entry(manual_backward.unroll),
    "graph": core_entry(lambda core: [recorded_once(core) for _ in range(3)][-1]),
    "chain": chain_entry(cpp_latent_chain.unroll),
    "chain by hand": chain_entry(latent_chain.by_hand),
    "lstm": lstm_entry(),
    "step": step_entry(lambda w_h, w_z: cpp_lstm_step.Stepper(w_h, w_z, cpp_lstm_step.OURS)),
    "density": density_entry(),
    "tokens": token_entry(),
    "persistent": persistent_entry(),
}
recorded_once = recorded()[0]
