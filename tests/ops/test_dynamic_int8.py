"""int8 activations times int8 weights: exact sums, and how far the result may be from the wide one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.dynamic_int8 import dynamic_int8_linear, int8_product, wide_product
from modelwright.ops.weight_only import dequantise, quantise_int8


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 70), st.integers(0, 99))
def test_the_kernel_is_the_exact_product(rows, outputs, inputs, seed):
    torch.manual_seed(seed)
    left = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    right = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    assert int8_product(left, right).dtype == torch.int32
    assert torch.equal(int8_product(left, right), wide_product(left, right))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_is_that_of_rounding_the_activations(dtype):
    torch.manual_seed(0)
    x, bias = torch.randn(2, 3, 48, dtype=dtype), torch.randn(5, dtype=dtype)
    weight = quantise_int8(torch.randn(5, 48))
    out = dynamic_int8_linear(x, weight, bias)
    assert out.shape == (2, 3, 5) and out.dtype == dtype
    wide = x.float() @ dequantise(weight).t() + bias.float()
    half_a_step = x.float().abs().amax(dim=-1, keepdim=True) / 127 / 2
    bound = half_a_step * dequantise(weight).abs().sum(dim=-1)  # every input off by half a step, all one way
    rounding = torch.finfo(dtype).eps * wide.abs() + 1e-5
    assert ((out.float() - wide).abs() <= bound + rounding).all()


def test_rows_of_zeros_give_the_bias():
    weight, bias = quantise_int8(torch.randn(3, 8)), torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(dynamic_int8_linear(torch.zeros(2, 8), weight, bias), bias.expand(2, 3))
