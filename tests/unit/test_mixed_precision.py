"""Products of narrow operands: only these are rounded, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zfdist.model.kernels.mixed_precision import WideLinear, linear, product, rounded

NARROW = (torch.bfloat16, torch.float16)
SIZES = {"rows": st.integers(1, 9), "inputs": st.integers(1, 40), "outputs": st.integers(1, 9)}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("operand", NARROW)
@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_a_product_rounds_its_operands_and_nothing_else(operand, rows, inputs, outputs):
    left, right = numbers(rows, inputs), numbers(inputs, outputs, seed=1)
    expected = left.to(operand).double() @ right.to(operand).double()
    out = torch.empty(rows, outputs)
    for a, b in ((left.to(operand), right.to(operand)), (rounded(left, operand), rounded(right, operand))):
        for got in (product(a, b, torch.float32), product(a, b, torch.float32, out)):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operand", NARROW)
@pytest.mark.parametrize("leading", [(6,), (3, 2)])
def test_linear_rounds_its_operands_backwards_too(operand, leading):
    value, weight = numbers(*leading, 12).requires_grad_(), numbers(5, 12, seed=1).requires_grad_()
    given_back = numbers(*leading, 5, seed=2)
    result = linear(value, weight, operand)
    dvalue, dweight = torch.autograd.grad(result, (value, weight), given_back)
    exact = [t.detach().to(operand).double() for t in (value, weight, given_back)]
    v, w, g = exact[0].flatten(0, -2), exact[1], exact[2].flatten(0, -2)
    for got, expected in ((result, v @ w.T), (dvalue, g @ w), (dweight, g.T @ v)):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.detach().double(), expected.view(got.shape), rtol=1e-5, atol=1e-5)


def test_linear_with_nothing_to_round_is_torchs_and_twice_differentiable():
    value, weight = numbers(4, 3).double().requires_grad_(), numbers(5, 3, seed=1).double().requires_grad_()
    assert torch.equal(linear(value, weight, torch.float64), F.linear(value, weight))
    assert torch.autograd.gradgradcheck(lambda v, w: linear(v, w, torch.float64).sin(), (value, weight))


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_is_torchs_but_under_autocast(bias):
    layer, value = WideLinear(12, 5, bias=bias), numbers(3, 2, 12)
    assert torch.equal(layer(value), nn.Linear.forward(layer, value))
    expected = F.linear(value.bfloat16().float(), layer.weight.bfloat16().float(), layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        for given_value in (value, value.bfloat16()):
            got = layer(given_value)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected)
        assert nn.Linear.forward(layer, value).dtype == torch.bfloat16
    grads = torch.autograd.grad(got.sum(), list(layer.parameters()))
    assert all(g.dtype == torch.float32 for g in grads)
