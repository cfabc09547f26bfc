"""The compiled kernels for linear layers and experts, and the parts of a long sequence: equal to torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.experts import looped_experts
from modelwright.ops.paged import paged_attention
from modelwright.ops.pages import Pages
from modelwright.ops.weight_only import Int4Weight, Int8Weight, dequantise, quantise_int4, quantise_int8

compiled = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-8}}
"""The sums are taken in fp32; a bf16 result is the nearest of its neighbours, or the next."""
STORED = {
    "plain": lambda weight: weight,
    "int8": quantise_int8,
    "int4/32": lambda weight: quantise_int4(weight, 32),
    "int4/64 offset": lambda weight: quantise_int4(weight, 64, offset=True),
    "int4/128": lambda weight: quantise_int4(weight, 128),
    "int4/32 offset": lambda weight: quantise_int4(weight, 32, offset=True),
}


def wide(weight: Tensor | Int8Weight | Int4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight in fp32; where it is in integers, as rounded to ``dtype``."""
    return weight.float() if isinstance(weight, Tensor) else dequantise(weight, dtype).float()


@compiled
@pytest.mark.parametrize("rows", [512, 513, 1300])
@pytest.mark.parametrize("dtype", CLOSE)
@torch.no_grad()
def test_rows_are_taken_512_at_once(dtype, rows):
    """They are copied as floats: each part of them goes to its place in every layer's result."""
    x, shift = torch.randn(rows, 48).to(dtype)[:, :40], torch.randn(9).to(dtype)
    layers = [((torch.randn(out, 40) / 40**0.5).to(dtype), bias) for out, bias in ((9, shift), (5, None))]
    for found, (weight, bias) in zip(kernels.linears(x, layers), layers, strict=True):
        expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        torch.testing.assert_close(found.float(), expected, **CLOSE[dtype])


@compiled
@pytest.mark.parametrize("kind", STORED)
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 20),
    st.integers(1, 40) | st.sampled_from([300]),
    st.sampled_from([128, 256, 640]),
    st.integers(0, 63),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_linear_equals_torch(kind, dtype, rows, out, inputs, odd, bias, seed):
    torch.manual_seed(seed)
    if kind in ("plain", "int8"):
        inputs -= odd  # any width
    weight = STORED[kind]((torch.randn(out, inputs) / inputs**0.5).to(dtype))
    x = torch.randn(rows, inputs + 3).to(dtype)[:, :inputs]  # rows further apart than they are wide
    shift = torch.randn(out).to(dtype) if bias else None
    assert kernels.serves_linear(x, weight)
    few = kernels.unit() == kernels.Unit.STREAMS or rows <= (8 if kind == "int8" else 16)
    stands_for = wide(weight, torch.float32 if few else dtype)  # more rows of bf16 meet the integers rounded to bf16
    expected = F.linear(x.float(), stands_for, None if shift is None else shift.float())
    result = kernels.linear(x, weight, shift)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, **CLOSE[dtype])


@compiled
def test_linear_keeps_the_leading_dimensions():
    x, weight = torch.randn(2, 3, 16), torch.randn(5, 16)
    torch.testing.assert_close(kernels.linear(x, weight), F.linear(x, weight))
    assert kernels.linear(x[:0], weight).shape == (0, 3, 5)


@compiled
@pytest.mark.parametrize("store", STORED.values(), ids=STORED)
def test_a_width_that_does_not_fit_is_refused(store):
    with pytest.raises(ValueError, match=r"the width of x \(64\) must be the inputs of the weight \(128\)"):
        kernels.linear(torch.zeros(1, 64), store(torch.zeros(8, 128)))


@compiled
@pytest.mark.parametrize("kind", STORED)
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([128, 256]),
    st.integers(0, 2**16),
)
def test_experts_equal_the_loop(kind, dtype, tokens, top_k, width, seed):
    torch.manual_seed(seed)
    dim = 128 if kind != "plain" else 72
    w_in = STORED[kind]((torch.randn(6, 2 * width, dim) / dim**0.5).to(dtype))
    w_out = STORED[kind]((torch.randn(6, dim, width) / width**0.5).to(dtype))
    x, weights = torch.randn(tokens, dim).to(dtype), torch.rand(tokens, top_k)
    chosen = torch.rand(tokens, 6).argsort(dim=-1)[:, :top_k]
    assert kernels.serves_experts(x, w_in, w_out)
    expected = looped_experts(x.float(), chosen, weights, wide(w_in), wide(w_out), F.silu)
    result = kernels.experts(x, chosen, weights, w_in, w_out)
    assert result.dtype == dtype
    bounds = CLOSE[dtype] if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}  # the hidden units are bf16 too
    torch.testing.assert_close(result.float(), expected, **bounds)


@compiled
def test_experts_nobody_chose_are_not_read():
    w_in, w_out = torch.randn(3, 32, 16), torch.randn(3, 16, 16)
    w_in[1], w_out[1] = torch.nan, torch.nan
    out = kernels.experts(torch.randn(2, 16), torch.tensor([[0, 2], [2, 0]]), torch.ones(2, 2), w_in, w_out)
    assert out.isfinite().all()


@compiled
def test_what_the_kernels_do_not_serve_is_said():
    x, weight = torch.randn(2, 64), torch.randn(8, 64)
    assert kernels.serves_linear(x, weight, quantise_int8(weight), quantise_int4(weight))
    assert not kernels.serves_linear(x, weight.bfloat16())
    assert not kernels.serves_linear(x.half(), weight.half())
    assert not kernels.serves_linear(x, torch.randn(64, 8).T)
    assert not kernels.serves_experts(x, weight[None], quantise_int8(weight[None]))


@compiled
def test_threads_share_the_work_and_change_nothing(three_threads):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 256), torch.randn(2048, 256)  # two megabytes: several pieces
    w_in, w_out = torch.randn(4, 1024, 256) / 16, torch.randn(4, 256, 512) / 16
    chosen = torch.tensor([[0, 3], [3, 1]])
    shared, routed = kernels.linear(x, weight), kernels.experts(x, chosen, torch.ones(2, 2), w_in, w_out)
    torch.set_num_threads(1)
    assert torch.equal(shared, kernels.linear(x, weight))
    assert torch.equal(routed, kernels.experts(x, chosen, torch.ones(2, 2), w_in, w_out))


@compiled
def test_parts_of_a_long_sequence_are_put_together(three_threads):
    torch.manual_seed(0)
    keys, values = Pages(torch.randn(200, 16, 2, 8)), Pages(torch.randn(200, 16, 2, 8))
    contexts, tables = [3000, 1, 129], torch.randperm(200).repeat(3, 1)
    q = torch.randn(3, 4, 8) * 3  # sharp: some parts matter far less than others
    out = kernels.decode([q], [keys], values, torch.tensor(contexts), tables, 1.0)
    torch.testing.assert_close(out, paged_attention(q, keys, values, range(4), contexts, tables, 1.0))
