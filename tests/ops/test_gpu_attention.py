"""Attention over pages on a GPU: Triton's programs and torch's products held to the written-out product alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.triton import attention, load
from modelwright.ops.paged import (
    continued_attention,
    continued_latent_attention,
    decode_attention,
    decode_latent_attention,
    gathered_attention,
    gathered_latent_attention,
    paged_attention,
    paged_latent_attention,
)
from modelwright.ops.pages import Pages
from tests.ops.gpu import CLOSE, DEVICE, WAYS, moved, needs_triton
from tests.ops.small_pages import scattered, stored, stored_latents

F32, F16, BF16, INT8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
TYPES = [(F32, F32), (F32, BF16), (F32, INT8), (F16, F16), (BF16, BF16), (BF16, INT8)]
SIZES = [(4, 2, 6, 5), (3, 3, 16, 16), (8, 1, 40, 64), (20, 1, 64, 32), (2, 1, 48, 80), (70, 1, 8, 20)]
"""Heads, heads of keys, widths of keys and values: whole blocks and parts, fewer rows than a tile has and more."""
LATENT_SIZES = [(4, 6, 2), (1, 32, 32), (21, 96, 64), (2, 20, 12), (16, 260, 16), (3, 16, 16)]
"""Heads, rank, width of the rotated part."""


def close(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result.cpu().float(), expected, **CLOSE[result.dtype])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize(("types", "sizes"), list(zip(TYPES, SIZES, strict=True)), ids=str)
def test_decode_equals_the_written_out_product(fast, types, sizes):
    torch.manual_seed(0)
    (dtype, kind), (heads, kv_heads, k_dim, v_dim), contexts = types, sizes, [300, 1, 33]
    tables, used = scattered(contexts, page_size=7)
    keys, values = (stored((*used.shape, kv_heads, width), kind, used) for width in (k_dim, v_dim))
    q = torch.randn(heads, 3, k_dim).to(dtype).transpose(0, 1)
    way = gpu_kernels.decode if fast else gathered_attention
    where = torch.tensor(contexts, device=DEVICE), tables.to(DEVICE)
    out = way(q.to(DEVICE), moved(keys), moved(values), *where, k_dim**-0.5)
    assert out.dtype == dtype
    close(out, paged_attention(q.float(), keys, values, range(4), contexts, tables, k_dim**-0.5))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize(("types", "sizes"), list(zip(TYPES, LATENT_SIZES, strict=True)), ids=str)
def test_latent_decode_equals_the_written_out_product(fast, types, sizes):
    torch.manual_seed(0)
    (dtype, kind), (heads, rank, rope), contexts = types, sizes, [260, 1, 33]
    tables, used = scattered(contexts, page_size=16)
    latent, k_rope = stored_latents(used, rank, rope, kind)
    inner, rotated = (torch.randn(heads, 3, width).to(dtype).transpose(0, 1) for width in (rank, rope))
    scale = (rank + rope) ** -0.5
    where = torch.tensor(contexts, device=DEVICE), tables.to(DEVICE)
    pages, ours = (moved(k_rope), moved(latent)), (inner.to(DEVICE), rotated.to(DEVICE))
    if fast:
        out = gpu_kernels.decode(ours[1], *pages, *where, scale, q_inner=ours[0])
    else:
        out = gathered_latent_attention(*ours, pages[1], pages[0], *where, scale)
    assert out.dtype == dtype
    expected = paged_latent_attention(inner.float(), rotated.float(), latent, k_rope, range(4), contexts, tables, scale)
    close(out, expected)


@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize("starts", [[0, 5, 6, 23], [0, 40, 49, 82], [0, 21, 22, 54]], ids=["parts", "whole", "mixed"])
@pytest.mark.parametrize(
    ("types", "sizes"), [((F32, F32), (4, 2, 6, 5)), ((BF16, INT8), (6, 2, 24, 16)), ((F16, F16), (2, 2, 16, 40))]
)
def test_packed_queries_see_their_past_only(fast, starts, types, sizes):
    torch.manual_seed(0)
    (dtype, kind), (heads, kv_heads, k_dim, v_dim), contexts = types, sizes, [40, 9, 33]
    tables, used = scattered(contexts, page_size=5)
    keys, values = (stored((*used.shape, kv_heads, width), kind, used) for width in (k_dim, v_dim))
    q = torch.randn(heads, starts[-1], k_dim).to(dtype).transpose(0, 1)
    way = gpu_kernels.ragged if fast else paged_attention
    out = way(q.to(DEVICE), moved(keys), moved(values), starts, contexts, tables.to(DEVICE), k_dim**-0.5)
    assert out.dtype == dtype
    close(out, paged_attention(q.float(), keys, values, starts, contexts, tables, k_dim**-0.5))


@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize(
    ("types", "sizes"), [((F32, F32), (20, 6, 2)), ((BF16, INT8), (4, 40, 8)), ((F32, INT8), (2, 16, 24))]
)
def test_packed_latent_queries_see_their_past_only(fast, types, sizes):
    torch.manual_seed(0)
    (dtype, kind), (heads, rank, rope), contexts, starts = types, sizes, [40, 9, 33], [0, 21, 22, 39]
    tables, used = scattered(contexts, page_size=5)
    latent, k_rope = stored_latents(used, rank, rope, kind)
    inner, rotated = (torch.randn(heads, starts[-1], width).to(dtype).transpose(0, 1) for width in (rank, rope))
    scale = (rank + rope) ** -0.5
    ours, where = (inner.to(DEVICE), rotated.to(DEVICE)), (starts, contexts, tables.to(DEVICE))
    if fast:
        out = gpu_kernels.ragged(ours[1], moved(k_rope), moved(latent), *where, scale, q_inner=ours[0])
    else:
        out = paged_latent_attention(*ours, moved(latent), moved(k_rope), *where, scale)
    assert out.dtype == dtype
    close(out, paged_latent_attention(inner.float(), rotated.float(), latent, k_rope, starts, contexts, tables, scale))


@needs_triton
@pytest.mark.parametrize("shares", [1, 2, 5, 40])
def test_any_number_of_programs_may_share_the_keys(monkeypatch, shares):
    """More than there are keys too: then some have none."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "_shares", lambda *_: shares)
    contexts, starts = [130, 3], [0, 6, 8]
    tables, used = scattered(contexts, page_size=16)
    keys, values = (stored((*used.shape, 1, 8), F32, used) for _ in range(2))
    q = torch.randn(8, 2, 8)
    expected = paged_attention(q, keys, values, starts, contexts, tables, 0.5)
    out = gpu_kernels.ragged(q.to(DEVICE), moved(keys), moved(values), starts, contexts, tables.to(DEVICE), 0.5)
    close(out, expected)


@needs_triton
def test_scores_that_overflow_a_plain_exponential_are_no_trouble():
    keys, values = Pages(torch.tensor([[[[100.0]], [[-100.0]]]])), Pages(torch.tensor([[[[1.0]], [[2.0]]]]))
    q, where = torch.tensor([[[100.0]], [[-100.0]]]), (torch.tensor([2, 2]), torch.zeros(2, 1, dtype=torch.int32))
    out = gpu_kernels.decode(q.to(DEVICE), moved(keys), moved(values), *(x.to(DEVICE) for x in where), 1.0)
    assert out.flatten().tolist() == [1.0, 2.0]


@needs_triton
def test_no_queries_give_no_result():
    pages = moved(Pages(torch.zeros(1, 4, 2, 8)))
    none = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    out = gpu_kernels.decode(torch.zeros(0, 4, 8, device=DEVICE), pages, pages, none, none.view(0, 1), 1.0)
    assert out.shape == (0, 4, 8)


@needs_triton
def test_what_does_not_fit_is_refused():
    pages, one = moved(Pages(torch.zeros(1, 4, 2, 8))), torch.ones(1, 1, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"the width of the queries \(6\) must be that of the keys \(8\)"):
        gpu_kernels.decode(torch.zeros(1, 4, 6, device=DEVICE), pages, pages, one[0], one, 1.0)
    across = Pages(torch.zeros(1, 4, 8, 2, device=DEVICE).transpose(2, 3))
    with pytest.raises(ValueError, match="must lie side by side, got a stride of 2"):
        gpu_kernels.decode(torch.zeros(1, 4, 8, device=DEVICE), across, pages, one[0], one, 1.0)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([1, 2, 16]))
def test_tiles_cover_every_query_once(counts, size):
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    tiles = attention.Tiles.of(starts, size, torch.device("cpu"))
    covered = []
    for sequence, token in zip(tiles.sequences.tolist(), tiles.tokens.tolist(), strict=True):
        own = range(token, min(token + size, starts[sequence + 1]))
        assert starts[sequence] <= token
        covered += own
    assert covered == list(range(starts[-1]))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((1, 8, 128, 128, 2), (16, 8, 64, 128, 128)),  # tokens, group, widths, bytes: rows, heads, keys, blocks
        ((512, 8, 128, 128, 2), (64, 8, 64, 128, 128)),
        ((512, 3, 64, 64, 2), (64, 4, 64, 64, 64)),
        ((1, 1, 192, 128, 2), (16, 1, 32, 256, 128)),
        ((1, 128, 64, 512, 2), (16, 16, 32, 64, 512)),
        ((512, 128, 64, 512, 4), (16, 16, 16, 64, 512)),
        ((3, 2, 6, 5, 4), (16, 2, 64, 16, 16)),
    ],
)
def test_tiles_are_as_large_as_a_processor_holds(sizes, shape):
    found = attention.Shape.of(*sizes)
    assert (found.rows, found.heads, found.keys, found.k_block, found.v_block) == shape


@pytest.mark.parametrize(
    ("row", "keys", "shares"), [(1, 4096, 32), (8, 4096, 4), (33, 4096, 1), (1, 100, 1), (1, 300, 2)]
)
def test_keys_are_shared_out_where_programs_are_few(row, keys, shares):
    assert attention._processors(torch.device("cpu")) == 16
    assert attention._shares(row, keys, torch.device("cpu")) == shares


@pytest.fixture
def chosen(monkeypatch) -> list[str]:
    """The kernels are asked for on whatever device there is, and those of the CPU are not; which of them ran."""
    ran: list[str] = []
    monkeypatch.setattr(load, "DEVICES", [DEVICE.type])
    monkeypatch.setattr(kernels, "serves_decode", lambda *_: False)
    for name in ("decode", "ragged"):
        way = getattr(gpu_kernels, name)
        monkeypatch.setattr(gpu_kernels, name, lambda *args, name=name, way=way: ran.append(name) or way(*args))
    return ran


@pytest.mark.slow
@needs_triton
@torch.inference_mode()
def test_grouped_attention_chooses_the_kernels(chosen):
    torch.manual_seed(0)
    keys, values = (moved(Pages(torch.randn(3, 4, 2, 8))) for _ in range(2))
    table, contexts = torch.tensor([[2, 0]], device=DEVICE), torch.tensor([6], device=DEVICE)
    q = torch.randn(1, 4, 3, 8, device=DEVICE)
    expected = paged_attention(q[0].transpose(0, 1), keys, values, [0, 3], [6], table, 0.5)
    torch.testing.assert_close(continued_attention(q, keys, values, 6, table[0], 0.5)[0].transpose(0, 1), expected)
    out = decode_attention(q[0, :, 2:].transpose(0, 1), keys, values, contexts, table, 0.5)
    torch.testing.assert_close(out, expected[2:])
    assert chosen == ["ragged", "decode"]


@pytest.mark.slow
@needs_triton
@torch.inference_mode()
def test_latent_attention_chooses_the_kernels(chosen):
    torch.manual_seed(0)
    latent, k_rope = (moved(Pages(torch.randn(3, 4, width))) for width in (12, 4))
    table, contexts = torch.tensor([[2, 0]], device=DEVICE), torch.tensor([6], device=DEVICE)
    q_nope, q_rope = (torch.randn(1, 2, 3, width, device=DEVICE) for width in (6, 4))
    kv_b = torch.randn(2 * (6 + 5), 12, device=DEVICE)
    out = continued_latent_attention(q_nope, q_rope, latent, k_rope, 6, table[0], kv_b, 0.5)
    load.DEVICES.clear()
    expected = continued_latent_attention(q_nope, q_rope, latent, k_rope, 6, table[0], kv_b, 0.5)
    load.DEVICES.append(DEVICE.type)
    torch.testing.assert_close(out, expected)
    inner, rotated = torch.randn(1, 2, 12, device=DEVICE), torch.randn(1, 2, 4, device=DEVICE)
    out = decode_latent_attention(inner, rotated, latent, k_rope, contexts, table, 0.5)
    expected = gathered_latent_attention(inner, rotated, latent, k_rope, contexts, table, 0.5)
    torch.testing.assert_close(out, expected)
    assert chosen == ["ragged", "decode"]


@pytest.mark.slow
@needs_triton
def test_what_the_kernels_do_not_serve_is_said(monkeypatch):
    q, pages = torch.randn(1, 2, 8), Pages(torch.randn(1, 4, 2, 8))
    assert not gpu_kernels.serves_attention(q, pages, pages)
    monkeypatch.setattr(load, "DEVICES", ["cpu"])
    assert gpu_kernels.serves_attention(q, pages, pages)
    assert not gpu_kernels.serves_attention(q.double(), pages, pages)
    assert not gpu_kernels.serves_attention(q, pages, Pages(pages.rows.double()))
