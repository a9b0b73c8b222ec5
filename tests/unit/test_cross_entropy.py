"""Log-probabilities of tokens in chunks: the numbers of the whole softmax, in the memory of a chunk."""

import pytest
import torch
from small_systems import make, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zfdist.config import ModelConfig
from zfdist.model.kernels import cross_entropy
from zfdist.model.kernels.cross_entropy import CHUNK_LOGITS, KEPT_LOGITS, token_log_prob
from zfdist.model.systems import build


def leaves(positions=11, hidden=4, words=6):
    generator = torch.Generator().manual_seed(0)
    shapes = ((positions, hidden), (words, hidden), (words,))
    floats = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return (*floats, torch.randint(words, (positions,), generator=generator))


@pytest.mark.parametrize("kept", [0, 2**24])
@pytest.mark.parametrize("chunk", [1, 6, 13, 30, 10_000])
def test_values_and_gradients_are_those_of_the_whole_softmax(chunk, kept, monkeypatch):
    monkeypatch.setattr(cross_entropy, "KEPT_LOGITS", kept)
    a, w, b, target = leaves()
    mix = torch.randn(11, dtype=torch.float64)
    whole = torch.log_softmax(a @ w.T + b, -1).gather(1, target[:, None]).squeeze(1)
    ours = token_log_prob(a, w, b, target, chunk)
    torch.testing.assert_close(ours, whole, rtol=1e-13, atol=1e-13)
    both = (torch.autograd.grad((mix * value).sum(), (a, w, b)) for value in (whole, ours))
    for expected, actual in zip(*both, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 2**24])
def test_gradcheck(kept, monkeypatch):
    monkeypatch.setattr(cross_entropy, "KEPT_LOGITS", kept)
    a, w, b, target = leaves()
    assert torch.autograd.gradcheck(lambda *floats: token_log_prob(*floats, target, 13), (a, w, b))


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_few_logits_are_made_once_and_many_anew(monkeypatch):
    a, w, b, target = leaves()
    operations = []
    for kept in (0, 2**24):
        monkeypatch.setattr(cross_entropy, "KEPT_LOGITS", kept)
        with FlopCounterMode(display=False) as counted:
            token_log_prob(a, w, b, target, 13).sum().backward()
        operations.append(counted.get_total_flops())
    assert operations[0] - operations[1] == 2 * a.numel() * len(w)


def test_no_tensor_of_all_logits_is_ever_made():
    words, positions, chunk = 500, 400, 10_000
    a, w, b, target = leaves(positions, 4, words)
    with Largest() as largest:
        token_log_prob(a, w, b, target, chunk).sum().backward()
    assert largest.elements <= chunk < positions * words / 10


def test_a_network_over_tokens_never_holds_all_logits():
    words, steps, batch = 7000, 70, 40
    model = build(ModelConfig(system="rnn", density="categorical", embed_dim=2, hidden=2, mlp_dim=2), words, seed=0)
    tokens = torch.randint(words, (steps + 1, batch), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        run(model, tokens, torch.full((batch,), steps), torch.zeros(steps, batch, 1)).log_px_TB.sum().backward()
    assert largest.elements <= CHUNK_LOGITS < KEPT_LOGITS < words * steps * batch


def test_perplexity_of_a_network_that_is_a_bigram_table():
    """Counted by hand: 2 sentences of 3 words, perplexity exp(-sum log p / 8) with the end of each counted."""
    end, a, b = 0, 1, 2
    # After the start (token 0): a 3/4, b 1/4. After a: end 1/2, a 1/4, b 1/4. After b: end 1/4, a 1/2, b 1/4.
    table = torch.tensor([[1e-300, 3 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4]], dtype=torch.float64)
    sentences = [[end, a, b, a, end], [end, b, b, a, end]]
    by_hand = (4 / 3) * 4 * 2 * 2 * (4 * 4 * 2 * 2)  # product of 1 / p
    model = make("rnn", "categorical", hidden=3, mlp_dim=1, embed_dim=3, output_layers=0)
    sharp = torch.tanh(torch.ones(1, dtype=torch.float64))  # h is +- tanh(1) with all gates open
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight.copy_(torch.cat([2 * torch.eye(3) - 1, -torch.ones(1, 3)]))
        model.lstm.bias_ih_l0.copy_(torch.tensor([50.0, -50.0, 0.0, 50.0]).repeat_interleave(3))  # i, f, g, o
        model.lstm.weight_ih_l0[6:9] = 50 * torch.eye(3)
        weight = torch.cat([table.log().T, torch.full((1, 3), -1000.0, dtype=torch.float64)]) / (2 * sharp)
        model.output.out.weight.copy_(weight)
        model.output.out.bias.copy_((weight * sharp).sum(1))
        tokens = torch.tensor(sentences).T
        terms = run(model, tokens, torch.tensor([4, 4]), torch.zeros(4, 2, 3, dtype=torch.float64))
    perplexity = torch.exp(-terms.log_px_TB.sum() / 8)
    torch.testing.assert_close(perplexity, torch.tensor(by_hand, dtype=torch.float64) ** (1 / 8))
