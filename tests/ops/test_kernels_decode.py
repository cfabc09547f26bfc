"""Decode attention by the compiled kernel: any grouping of heads, contexts cut into parts, threads, wide tables."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.paged import paged_attention, paged_latent_attention
from modelwright.ops.pages import Pages
from tests.ops.small_pages import scattered, stored, stored_latents

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CLOSE = {torch.bfloat16: {"rtol": 2e-2, "atol": 1e-2}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}
KINDS = [(torch.float32, kind) for kind in (torch.float32, torch.bfloat16, torch.int8)]
KINDS += [(torch.bfloat16, kind) for kind in (torch.bfloat16, torch.int8)]
named = [pytest.param(types, id="-".join(str(kind).removeprefix("torch.") for kind in types)) for types in KINDS]


@pytest.mark.parametrize("types", named)
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 19),
    st.integers(1, 3),
    st.sampled_from([(64, 64), (32, 96), (160, 32)]),
    st.lists(st.integers(1, 70) | st.sampled_from([128, 129, 500]), min_size=1, max_size=3),
    st.integers(0, 2**16),
)
def test_any_number_of_heads_may_share_a_key(types, group, kv_heads, widths, contexts, seed):
    torch.manual_seed(seed)
    (dtype, kind), (k_dim, v_dim) = types, widths
    tables, used = scattered(contexts, 16)
    keys, values = (stored((*used.shape, kv_heads, width), kind, used) for width in (k_dim, v_dim))
    q = torch.randn(len(contexts), group * kv_heads, k_dim).to(dtype)
    out = kernels.decode([q], [keys], values, torch.tensor(contexts), tables, k_dim**-0.5)
    starts = range(len(contexts) + 1)
    expected = paged_attention(q.float(), keys, values, starts, contexts, tables, k_dim**-0.5)
    torch.testing.assert_close(out.float(), expected, **CLOSE[dtype])


@pytest.mark.parametrize("types", named)
@pytest.mark.parametrize("sizes", [(16, 512, 64), (5, 64, 32)], ids=str)
def test_long_latents_are_cut_and_put_together(types, sizes):
    torch.manual_seed(0)
    (dtype, kind), (heads, rank, rope) = types, sizes
    contexts = [1111, 1, 32]
    tables, used = scattered(contexts, 16)
    latent, k_rope = stored_latents(used, rank, rope, kind)
    q = [(torch.randn(3, heads, width) * 3).to(dtype) for width in (rank, rope)]  # sharp: parts matter unequally
    scale = (rank + rope) ** -0.5
    out = kernels.decode(q, [latent, k_rope], latent, torch.tensor(contexts), tables, scale)
    wide = [part.float() for part in q]
    expected = paged_latent_attention(*wide, latent, k_rope, range(4), contexts, tables, scale)
    torch.testing.assert_close(out.float(), expected, **CLOSE[dtype])


@pytest.mark.parametrize("types", named)
def test_tables_may_be_wider_than_any_context(types):
    torch.manual_seed(0)
    (dtype, kind), contexts = types, [300, 17]
    tables, used = scattered(contexts, 16)
    wide = torch.full((2, 4096), -(2**31), dtype=torch.int32)
    wide[:, : tables.shape[1]] = tables
    keys, values = (stored((*used.shape, 2, 64), kind, used) for _ in range(2))
    q = torch.randn(2, 16, 64).to(dtype)
    narrow, broad = (kernels.decode([q], [keys], values, torch.tensor(contexts), t, 0.125) for t in (tables, wide))
    assert torch.equal(narrow, broad)


def test_whichever_thread_takes_a_part_the_result_is_the_same(three_threads):
    torch.manual_seed(0)
    contexts = torch.tensor([700, 3, 2000])
    pages = [Pages(torch.randn(200, 16, 2, 64).bfloat16()) for _ in range(2)]
    tables, q = torch.randint(200, (3, 125)), torch.randn(3, 16, 64).bfloat16()
    first = kernels.decode([q], [pages[0]], pages[1], contexts, tables, 0.125)
    for _ in range(20):
        assert torch.equal(kernels.decode([q], [pages[0]], pages[1], contexts, tables, 0.125), first)


@pytest.mark.parametrize("types", named)
@pytest.mark.parametrize("heads", [(8, 2, 64), (4, 4, 64), (3, 1, 20)], ids=str)
def test_shares_of_one_size_do_not_depend_on_the_sequences_beside(types, heads, three_threads):
    torch.manual_seed(0)
    (dtype, kind), (heads, kv_heads, width), contexts = types, heads, [1400, 3, 513, 512, 31, 900]
    tables, used = scattered(contexts, 16)
    keys, values = (stored((*used.shape, kv_heads, width), kind, used) for _ in range(2))
    q = torch.randn(len(contexts), heads, width).to(dtype)
    whole = kernels.decode([q], [keys], values, torch.tensor(contexts), tables, 0.125, 512)
    for i, context in enumerate(contexts):
        alone = kernels.decode([q[i : i + 1]], [keys], values, torch.tensor([context]), tables[i : i + 1], 0.125, 512)
        assert torch.equal(alone[0], whole[i])
    expected = paged_attention(q.float(), keys, values, range(7), contexts, tables, 0.125)
    torch.testing.assert_close(whole.float(), expected, **CLOSE[dtype])
