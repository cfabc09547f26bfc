"""Pages: what is stored comes back, int8 rounds by half a scale, the written-out products agree with the fast ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.attention import reference_attention
from modelwright.ops.paged import (
    Pages,
    copy_pages,
    decode_attention,
    decode_latent_attention,
    dequantise_rows,
    paged_attention,
    paged_latent_attention,
    prefill_attention,
    quantise_rows,
    read_pages,
    slots_of,
    write_pages,
)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_scale_at_most(size, dtype):
    torch.manual_seed(0)
    rows = (torch.randn(3, 5, 16) * size).to(dtype)
    steps, scales = quantise_rows(rows)
    assert steps.dtype == torch.int8 and scales.shape == (3, 5)
    back = dequantise_rows(steps, scales, torch.float32)
    torch.testing.assert_close(scales, rows.float().abs().amax(-1) / 127)
    assert ((back - rows.float()).abs() <= scales[..., None] * 0.5001).all()


def test_zeros_stay_zeros_in_int8():
    steps, scales = quantise_rows(torch.zeros(2, 4))
    assert torch.equal(dequantise_rows(steps, scales, torch.float32), torch.zeros(2, 4))


def test_slots_follow_the_table():
    assert slots_of([5, 2, 7], page_size=4, start=3, stop=9) == [23, 8, 9, 10, 11, 28]


def test_written_rows_come_back_and_nothing_else_moves():
    pages = Pages(torch.full((4, 3, 2, 5), torch.nan))
    values = torch.randn(4, 2, 5)
    write_pages(pages, torch.tensor(slots_of([3, 1], 3, 0, 4)), values)
    assert torch.equal(read_pages(pages, torch.tensor([3, 1]), 4, torch.float32), values)
    assert pages.rows.isnan().sum() == (12 - 4) * 10
    assert torch.equal(read_pages(pages, torch.tensor([3, 1, 99]), 3, torch.float64), values[:3].double())


def test_copies_are_read_before_they_are_written():
    pages = Pages(torch.arange(6.0).view(3, 2, 1))
    copy_pages(pages, [(0, 1), (1, 2)])
    assert pages.rows.flatten().tolist() == [0, 1, 0, 1, 2, 3]
    copy_pages(pages, [])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.int8]),
    st.integers(0, 2**16),
)
def test_decode_equals_the_written_out_product(contexts, page_size, dtype, seed):
    torch.manual_seed(seed)
    longest = -(-max(contexts) // page_size)
    tables = torch.randperm(len(contexts) * longest).view(len(contexts), longest)
    rows = {"keys": (2, 6), "values": (2, 5), "latent": (8,), "k_rope": (6,)}
    stored = {}
    for name, shape in rows.items():
        whole = torch.randn(tables.numel(), page_size, *shape)
        stored[name] = Pages(*quantise_rows(whole)) if dtype == torch.int8 else Pages(whole)
    starts, ends = range(len(contexts) + 1), torch.tensor(contexts)
    q, q_latent = torch.randn(len(contexts), 4, 6), torch.randn(len(contexts), 4, 8)
    pair = stored["keys"], stored["values"]
    torch.testing.assert_close(
        decode_attention(q, *pair, ends, tables, 0.4),
        paged_attention(q, *pair, starts, contexts, tables, 0.4),
        rtol=1e-5,
        atol=1e-5,
    )
    pair = stored["latent"], stored["k_rope"]
    torch.testing.assert_close(
        decode_latent_attention(q_latent, q, *pair, ends, tables, 0.4),
        paged_latent_attention(q_latent, q, *pair, starts, contexts, tables, 0.4),
        rtol=1e-5,
        atol=1e-5,
    )


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
