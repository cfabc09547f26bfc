"""Attention over pages: the written-out product by hand, and every faster way equal to it on whatever is stored."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelwright.ops.attention import reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.paged import (
    decode_attention,
    decode_latent_attention,
    gathered_attention,
    gathered_latent_attention,
    paged_attention,
    paged_latent_attention,
    prefill_attention,
)
from modelwright.ops.pages import Pages
from tests.ops.small_pages import scattered, stored, stored_latents

BF16 = {"rtol": 2e-2, "atol": 1e-2}
"""Queries, keys and results carry 8 bits, and so do the weights of the sums: errors of a few 2^-8 of values near 1."""
FP32 = {"rtol": 1e-5, "atol": 1e-5}


batches = st.lists(st.integers(1, 9) | st.sampled_from([31, 32, 33, 70, 300]), min_size=1, max_size=3)
kinds = st.sampled_from(
    [(torch.float32, kind) for kind in (torch.float32, torch.bfloat16, torch.int8)]
    + [(torch.bfloat16, kind) for kind in (torch.bfloat16, torch.int8)]
)
WAYS = [pytest.param(True, id="dispatched"), pytest.param(False, id="gathered")]


@pytest.mark.parametrize("fast", WAYS)
@settings(max_examples=40, deadline=None)
@given(
    batches,
    st.integers(1, 20),
    kinds,
    st.sampled_from([(4, 2, 6, 5), (3, 3, 16, 16), (8, 2, 32, 64), (20, 1, 64, 32), (2, 1, 48, 80)]),
    st.integers(0, 2**16),
)
def test_decode_equals_the_written_out_product(fast, contexts, page_size, types, sizes, seed):
    torch.manual_seed(seed)
    (dtype, kind), (heads, kv_heads, k_dim, v_dim) = types, sizes
    tables, used = scattered(contexts, page_size)
    keys, values = (stored((*used.shape, kv_heads, width), kind, used) for width in (k_dim, v_dim))
    q = torch.randn(heads, len(contexts), k_dim).to(dtype).transpose(0, 1)
    way = decode_attention if fast else gathered_attention
    out = way(q, keys, values, torch.tensor(contexts), tables, k_dim**-0.5)
    starts = range(len(contexts) + 1)
    expected = paged_attention(q.float(), keys, values, starts, contexts, tables, k_dim**-0.5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, **(BF16 if dtype == torch.bfloat16 else FP32))


@pytest.mark.parametrize("fast", WAYS)
@settings(max_examples=40, deadline=None)
@given(
    batches,
    st.integers(1, 20),
    kinds,
    st.sampled_from([(4, 6, 2), (1, 32, 32), (16, 64, 32), (21, 96, 64), (2, 20, 12)]),
    st.integers(0, 2**16),
)
@example([4], 4, (torch.bfloat16, torch.int8), (2, 20, 12), 2887)  # scores whose parts were added in bf16 missed it
@example([31, 2, 31], 15, (torch.bfloat16, torch.int8), (16, 64, 32), 2)  # and scores that were rounded to bf16
def test_latent_decode_equals_the_written_out_product(fast, contexts, page_size, types, sizes, seed):
    torch.manual_seed(seed)
    (dtype, kind), (heads, rank, rope) = types, sizes
    tables, used = scattered(contexts, page_size)
    latent, k_rope = stored_latents(used, rank, rope, kind)
    q = [torch.randn(heads, len(contexts), width).to(dtype).transpose(0, 1) for width in (rank, rope)]
    way = decode_latent_attention if fast else gathered_latent_attention
    out = way(*q, latent, k_rope, torch.tensor(contexts), tables, (rank + rope) ** -0.5)
    starts, wide = range(len(contexts) + 1), [part.float() for part in q]
    expected = paged_latent_attention(*wide, latent, k_rope, starts, contexts, tables, (rank + rope) ** -0.5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, **(BF16 if dtype == torch.bfloat16 else FP32))


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
def test_the_kernel_is_what_decode_runs():
    q, pages = torch.randn(1, 2, 8), Pages(torch.randn(1, 4, 2, 8))
    assert kernels.serves_decode(q, pages, pages)
    assert not kernels.serves_decode(q.double(), pages, pages)
    assert not kernels.serves_decode(q, pages, Pages(pages.rows.half()))


def test_the_written_out_product_sees_its_own_past_only():
    """Two sequences in one pool, the first with three new tokens of five, by plain attention over what each stored."""
    torch.manual_seed(0)
    keys, values = Pages(torch.randn(4, 2, 1, 4)), Pages(torch.randn(4, 2, 1, 3))
    tables, q = torch.tensor([[2, 0, 3], [1, -1, -1]]), torch.randn(4, 2, 4)
    out = paged_attention(q, keys, values, [0, 3, 4], [5, 2], tables, 0.5)
    k, v = keys.rows[[2, 0, 3]].view(1, 1, 6, 4), values.rows[[2, 0, 3]].view(1, 1, 6, 3)
    for token in range(3):
        alone = reference_attention(q[None, token, :, None], k[:, :, : 3 + token], v[:, :, : 3 + token], None, 0.5)
        torch.testing.assert_close(out[token], alone[0, :, 0])
    alone = reference_attention(
        q[None, 3, :, None], keys.rows[1][None, None, :, 0], values.rows[1][None, None, :, 0], None, 0.5
    )
    torch.testing.assert_close(out[3], alone[0, :, 0])


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("k_dim", "v_dim"), [(6, 6), (6, 4), (4, 6)])
def test_prefill_serves_values_of_any_width(past, tokens, k_dim, v_dim):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, 4, tokens, k_dim),
        torch.randn(1, 2, past + tokens, k_dim),
        torch.randn(1, 2, past + tokens, v_dim),
    )
    sees = torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)
    torch.testing.assert_close(prefill_attention(q, k, v, 0.5), reference_attention(q, k, v, sees, 0.5))
