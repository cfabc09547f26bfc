"""Norms, rotations, activations, scores and absorbed projections by the kernels, each beside what torch gives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.norm import reference_rms_norm, rms_norm
from modelwright.ops.rotary import inverse_frequencies, rope_table, rotate_half_split, rotate_interleaved
from modelwright.ops.routing import reference_router_scores

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7}}


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 70), st.sampled_from([1, 15, 16, 40, 1024]), st.booleans(), st.integers(0, 2**16))
@torch.inference_mode()
def test_norms_equal_torchs(dtype, rows, dim, once, seed):
    torch.manual_seed(seed)
    weight, x = torch.randn(dim).to(dtype), 3 * torch.randn(1, rows, dim).to(dtype)
    assert kernels.serves_rows(x, weight)
    found, wanted = rms_norm(x, weight, 1e-5, once), reference_rms_norm(x, weight, 1e-5, once)
    torch.testing.assert_close(found, wanted, **CLOSE[dtype])
    assert torch.equal(found, kernels.rms_norm(x, weight, 1e-5, once))


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 5), st.integers(1, 40), st.sampled_from([2, 6, 64]), st.booleans(), st.integers(0, 2**16))
@torch.inference_mode()
def test_rotations_equal_torchs(dtype, heads, tokens, dim, interleaved, seed):
    torch.manual_seed(seed)
    wide = torch.randn(1, tokens, heads, dim + 3).to(dtype)
    x = wide.transpose(1, 2)[..., :dim]  # as a layer hands them over: heads beside each other, a part of each
    cos, sin = rope_table(torch.randint(0, 5000, (1, tokens)), inverse_frequencies(dim, 10000.0))
    wanted = (rotate_interleaved if interleaved else rotate_half_split)(x, cos, sin)
    found = kernels.rotate(x, cos, sin, interleaved)
    assert found.shape == wanted.shape and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found, wanted, **CLOSE[dtype])
    cos, sin = cos.bfloat16(), sin.bfloat16()  # as transformers' Llama has them: every product and sum is rounded
    wanted = (rotate_interleaved if interleaved else rotate_half_split)(x, cos, sin)
    assert torch.equal(kernels.rotate(x, cos, sin, interleaved), wanted)


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 9), st.sampled_from([1, 15, 16, 33, 1408]), st.integers(0, 2**16))
@torch.inference_mode()
def test_gated_activations_equal_torchs(dtype, rows, dim, seed):
    torch.manual_seed(seed)
    gate, up = (20 * torch.randn(2, rows, 1, dim)).to(dtype)
    found, wanted = kernels.silu_product(gate, up), F.silu(gate) * up
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=2**-6 if dtype == torch.bfloat16 else 1e-5, atol=1e-30)


@torch.inference_mode()
def test_gated_activations_keep_what_is_no_number():
    gate = torch.tensor([[torch.nan, torch.inf, -200.0, 0.0]])
    for dtype in CLOSE:
        found = kernels.silu_product(gate.to(dtype), torch.ones(1, 4, dtype=dtype))[0].tolist()
        assert found[0] != found[0] and found[1:] == [torch.inf, 0.0, 0.0]


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 9), st.sampled_from([1, 15, 16, 33, 2048]), st.integers(0, 2**16))
@torch.inference_mode()
def test_quick_gelu_is_rounded_once(dtype, rows, dim, seed):
    torch.manual_seed(seed)
    x = (10 * torch.randn(rows, dim)).to(dtype)
    wanted = x.double() * (1.702 * x.double()).sigmoid()
    found = kernels.quick_gelu(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-30)


@torch.inference_mode()
def test_quick_gelu_keeps_what_is_no_number():
    for dtype in CLOSE:
        found = kernels.quick_gelu(torch.tensor([torch.nan, torch.inf, -200.0, 0.0], dtype=dtype)).tolist()
        assert found[0] != found[0] and found[1:] == [torch.inf, 0.0, 0.0]


@settings(max_examples=30)
@given(DTYPES, DTYPES, st.booleans(), st.integers(1, 70), st.sampled_from([(1, 3), (32, 1024), (7, 40)]))
@torch.inference_mode()
def test_scores_of_experts_equal_torchs(dtype, stored, softmax, tokens, sizes):
    experts, dim = sizes
    torch.manual_seed(tokens)
    weight, x = (torch.randn(experts, dim) / dim**0.5).to(stored), torch.randn(tokens, dim).to(dtype)
    wanted = reference_router_scores(x, weight, "softmax" if softmax else "sigmoid", torch.float32)
    for ways in zip(kernels.route(x, weight, softmax), wanted, strict=True):
        torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-5)


def test_other_types_and_strides_are_left_to_torch():
    x, weight = torch.randn(1, 2, 4, 8), torch.ones(8)
    assert kernels.serves_rows(x, weight)
    assert not kernels.serves_rows(x.double(), weight) and not kernels.serves_rows(x.mT, weight)
    assert not kernels.serves_rows(x, torch.ones(16)[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 8), (5, 24)])
def test_vectors_are_placed_where_their_slots_say(shape, dtype):
    wider = torch.zeros(11, *shape[1:-1], shape[-1] + 4, dtype=dtype)  # pages may be views of a wider pool
    rows, slots = wider[..., 2:-2], torch.tensor([7, 0, 10, 3, 4])
    values = torch.randn(*shape[1:-1], shape[0], shape[-1]).to(dtype).transpose(0, -2)
    assert kernels.serves_placing(rows, slots, values)
    kernels.place(rows, slots, values)
    assert torch.equal(rows, torch.zeros_like(rows).index_copy(0, slots, values))
    assert wider[..., :2].eq(0).all() and wider[..., -2:].eq(0).all()
