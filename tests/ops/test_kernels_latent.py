"""A latent layer's projection by the compiled kernels, head by head: any number of tokens, widths and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops import latent
from modelwright.ops.backends import cpu as kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-8}}
"""The sums are taken in fp32; a bf16 result is the nearest of its neighbours, or the next."""


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(CLOSE)),
    st.integers(1, 4),
    st.integers(1, 20) | st.sampled_from([32, 43]),
    st.sampled_from([(8, 8, 16), (5, 7, 33), (32, 64, 96), (64, 32, 32), (128, 128, 512), (32, 40, 64), (6, 32, 32)]),
    st.integers(0, 2**16),
)
@torch.inference_mode()
def test_both_ways_equal_the_written_out_products(dtype, heads, tokens, widths, seed):
    torch.manual_seed(seed)
    nope, v_dim, rank = widths
    kv_b = (torch.randn(heads * (nope + v_dim), rank) / rank**0.5).to(dtype)
    keys, values = kv_b.float().unflatten(0, (heads, -1)).split([nope, v_dim], dim=1)
    q = torch.randn(1, tokens, heads, nope + 5).to(dtype).transpose(1, 2)[..., :nope]  # rows further apart than wide
    into = torch.einsum("bhtn,hnr->bhtr", q.float(), keys)
    torch.testing.assert_close(kernels.latent_in(q, kv_b).float(), into, **CLOSE[dtype])
    x = torch.randn(1, tokens, heads, rank).to(dtype).transpose(1, 2)
    out = torch.einsum("bhtr,hvr->bhtv", x.float(), values)
    torch.testing.assert_close(kernels.latent_to_values(x, kv_b, nope).float(), out, **CLOSE[dtype])


@torch.inference_mode()
def test_threads_take_heads_and_change_nothing(three_threads):
    torch.manual_seed(0)
    kv_b, q, x = (torch.randn(shape).bfloat16() for shape in ((7 * 96, 64), (1, 7, 9, 32), (1, 7, 9, 64)))
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append((kernels.latent_in(q, kv_b), kernels.latent_to_values(x, kv_b, 32)))
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@torch.no_grad()
def test_operations_go_by_the_kernels():
    kv_b, q, x = torch.randn(2 * 16, 8), torch.randn(1, 2, 4, 6), torch.randn(1, 2, 4, 8)
    assert kernels.serves_latent(q, kv_b) and kernels.serves_latent(x, kv_b)
    assert torch.equal(latent.query_to_latent(q, kv_b), kernels.latent_in(q, kv_b))
    assert torch.equal(latent.latent_to_values(x, kv_b, 6), kernels.latent_to_values(x, kv_b, 6))


def test_rows_and_many_tokens_are_left_to_torch():
    x, kv_b = torch.randn(1, 2, 4, 8), torch.randn(2 * 16, 8)
    assert kernels.serves_latent(x, kv_b)
    assert not kernels.serves_latent(x.expand(2, -1, -1, -1), kv_b)
    assert not kernels.serves_latent(torch.randn(1, 2, 9, 8), kv_b)
    assert not kernels.serves_latent(x.double(), kv_b.double())


@torch.no_grad()
def test_any_number_of_tokens_is_served_where_torch_has_no_products_of_their_type(set_vectors):
    kv_b, x = torch.randn(2 * 16, 8).bfloat16(), torch.randn(1, 2, 200, 8).bfloat16()
    for capability, served in (("AVX2", True), ("AVX512", False), ("DEFAULT", False)):
        set_vectors(capability)
        assert kernels.serves_latent(x, kv_b) is served
        assert not kernels.serves_latent(x.float(), kv_b.float())


@torch.no_grad()
def test_more_tokens_are_served_where_widths_are_whole_blocks():
    kv_b, in_blocks = torch.randn(2 * 64, 32), kernels.unit() != kernels.Unit.STREAMS
    assert kernels.serves_latent(torch.randn(1, 2, 64, 32), kv_b) == in_blocks
    assert not kernels.serves_latent(torch.randn(1, 2, 65, 32), kv_b)
