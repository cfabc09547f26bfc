"""What is no number stays none: a key, a query or a value that is NaN or infinite is seen in whatever attends to it."""

import math

import pytest
import torch

from modelwright.ops.attention import attention, fused_attention, reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.latent import absorbed_attention
from modelwright.ops.paged import (
    decode_attention,
    decode_latent_attention,
    gathered_attention,
    gathered_latent_attention,
    prefill_attention,
)
from modelwright.ops.pages import Pages, quantise_rows
from tests.ops.gpu import DEVICE

CONTEXTS = [70, 3, 40]
SPOILT = [33, 1, 39]
"""Of each sequence the key that is no number."""
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def numbers_alone():
    """Kernels compute where no gradients are wanted."""
    with torch.inference_mode():
        yield


has_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


def pool(kv_heads: int | None, width: int, dtype: torch.dtype, kind: str, bad: float | None = None) -> Pages:
    """Three sequences of 5 pages of 16, one of whose vectors is no number."""
    rows = torch.randn(15, 16, *(() if kv_heads is None else (kv_heads,)), width).to(dtype)
    if bad is not None:
        for sequence, place in enumerate(SPOILT):
            rows[5 * sequence + place // 16, place % 16, ..., 0] = bad
    return Pages(*quantise_rows(rows)) if kind == "int8" else Pages(rows)


TABLES = torch.arange(15, dtype=torch.int32).view(3, 5)


@pytest.mark.parametrize("kind", ["plain", "int8"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("which", ["keys", "values"])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    ("way", "bad"),
    [
        pytest.param(decode_attention, math.nan, marks=has_kernels),
        pytest.param(decode_attention, math.inf, marks=has_kernels),
        (gathered_attention, math.nan),  # torch's kernel makes nothing of an infinite key
    ],
)
def test_decoding_over_pages_lets_it_through(way, group, which, dtype, kind, bad):
    torch.manual_seed(0)
    keys, values = (pool(2, 64, dtype, kind, bad if name == which else None) for name in ("keys", "values"))
    q = torch.randn(3, 2 * group, 64).to(dtype)
    if which == "keys":
        q[..., 0] = q[..., 0].abs()  # an infinite score that is negative is a weight of zero
    out = way(q, keys, values, torch.tensor(CONTEXTS), TABLES, 0.125)
    assert not out[..., 0].isfinite().any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["plain", "int8"])
@pytest.mark.parametrize("way", [pytest.param(decode_latent_attention, marks=has_kernels), gathered_latent_attention])
def test_decoding_in_latent_space_lets_it_through(way, kind, dtype):
    torch.manual_seed(0)
    for which in range(2):
        latent, k_rope = (
            pool(None, width, dtype, kind, math.nan if part == which else None) for part, width in enumerate((64, 32))
        )
        q = [torch.randn(3, 4, width).to(dtype) for width in (64, 32)]
        out = way(*q, latent, k_rope, torch.tensor(CONTEXTS), TABLES, 0.1)
        assert out.isnan()[..., 0].all()


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_of_a_prompt_lets_it_through(dtype):
    torch.manual_seed(0)
    for past in (0, 20):
        for which in range(2):
            q = torch.randn(1, 4, 30, 64).to(dtype)
            kv = [torch.randn(1, 2, past + 30, 64).to(dtype) for _ in range(2)]
            kv[which][:, :, past + 7] = math.nan
            for out in (prefill_attention(q, *kv, 0.125), attention(q, *kv, None, 0.125)):
                assert out[:, :, 7:].isnan().all()
            mask = torch.ones(30, past + 30, dtype=torch.bool)
            for way in (fused_attention, reference_attention):
                assert way(q, *kv, mask, 0.125).isnan().all()
    latent, k_rope = torch.randn(1, 30, 64).to(dtype), torch.randn(1, 30, 32).to(dtype)
    latent[:, 7] = math.nan
    out = absorbed_attention(
        torch.randn(1, 4, 5, 32).to(dtype),
        torch.randn(1, 4, 5, 32).to(dtype),
        latent,
        k_rope,
        torch.randn(4 * 64, 64).to(dtype),
        None,
        0.1,
    )
    assert out.isnan().all()


@pytest.mark.parametrize("contexts", [[70, 3, 40], [70, 70, 70]])
def test_gpu_programs_let_it_through(contexts):
    torch.manual_seed(0)
    keys, values = (pool(2, 64, torch.bfloat16, "plain", bad) for bad in (math.nan, None))
    keys, values = (Pages(part.rows.to(DEVICE)) for part in (keys, values))
    q = torch.randn(3, 8, 64, device=DEVICE).bfloat16()
    if not gpu_kernels.serves_attention(q, keys, values):
        pytest.skip("no Triton here")
    out = gpu_kernels.decode(q, keys, values, torch.tensor(contexts, device=DEVICE), TABLES.to(DEVICE), 0.125)
    assert out.isnan().all()


@has_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_products_let_it_through(dtype, rows):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 64).to(dtype), torch.randn(48, 64).to(dtype)
    x[0, 5] = math.nan
    out = kernels.linear(x, weight)
    assert out[0].isnan().all() and out[1:].isfinite().all()
    stack_in, stack_out = torch.randn(4, 64, 64).to(dtype), torch.randn(4, 64, 32).to(dtype)
    chosen = torch.randint(4, (rows, 2))
    out = kernels.experts(x, chosen, torch.full((rows, 2), 0.5), stack_in, stack_out)
    assert out[0].isnan().all() and out[1:].isfinite().all()
