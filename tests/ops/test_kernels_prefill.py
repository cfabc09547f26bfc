"""The compiled attention of a prompt's tokens: the reference's numbers, whatever the widths, the heads and the past."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.attention import attention, causal_mask, reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.paged import prefill_attention


def random_parts(heads, kv_heads, tokens, keys, k_dim, v_dim, dtype=torch.bfloat16):
    """Queries, keys and values as layers hand them over: heads beside each other in memory."""
    sizes = ((tokens, heads, k_dim), (keys, kv_heads, k_dim), (keys, kv_heads, v_dim))
    return [torch.randn(1, *size).to(dtype).transpose(1, 2) for size in sizes]


@torch.no_grad()
def runs_here():
    return kernels.serves_prefill(*random_parts(1, 1, 16, 16, 8, 8))


pytestmark = pytest.mark.skipif(
    not runs_here(), reason="this processor does not multiply bf16 by vectors, or torch does so by its matrix units"
)


@settings(max_examples=40)
@given(
    st.sampled_from([(1, 1), (4, 4), (8, 2)]),
    st.integers(16, 130),
    st.integers(0, 200),
    st.sampled_from([(8, 8), (64, 64), (192, 128), (6, 24)]),
    st.sampled_from([0.3, -0.3]),
    st.integers(0, 2**16),
)
@torch.inference_mode()
def test_equals_the_reference(heads, tokens, past, widths, scale, seed):
    torch.manual_seed(seed)
    q, k, v = random_parts(*heads, tokens, past + tokens, *widths)
    assert kernels.serves_prefill(q, k, v)
    sees = causal_mask(tokens, past + tokens, past, q.device)
    wanted = reference_attention(q.float(), k.float(), v.float(), sees, scale)
    found = prefill_attention(q, k, v, scale)
    assert found.dtype == torch.bfloat16 and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=2**-7)


@settings(max_examples=30)
@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (6, 2)]),
    st.integers(16, 130),
    st.integers(1, 200),
    st.sampled_from([(8, 8), (64, 64), (6, 24)]),
    st.integers(0, 2**16),
)
@torch.inference_mode()
def test_every_token_sees_every_key_of_its_own_sequence(batch, heads, tokens, keys, widths, seed):
    torch.manual_seed(seed)
    q, k, v = (
        torch.cat(parts)
        for parts in zip(*(random_parts(*heads, tokens, keys, *widths) for _ in range(batch)), strict=True)
    )
    found = attention(q, k, v, None, 0.3)
    wanted = reference_attention(q.float(), k.float(), v.float(), None, 0.3)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=2**-7)
    assert torch.equal(found, kernels.prefill(q, k, v, 0.3, causal=False))


@pytest.mark.parametrize("rule", [{"mask": torch.ones(20, 20).tril().bool()}, {"mask": None, "causal": True}])
@torch.inference_mode()
def test_masks_and_causal_rules_are_heeded(rule):
    q, k, v = random_parts(2, 2, 20, 20, 8, 8)
    found, sees = attention(q, k, v, scale=0.3, **rule), causal_mask(20, 20, 0, q.device)
    wanted = reference_attention(q.float(), k.float(), v.float(), sees, 0.3)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=2**-7)


@torch.inference_mode()
def test_the_future_changes_nothing():
    torch.manual_seed(0)
    q, k, v = random_parts(4, 2, 100, 150, 16, 16)
    whole = kernels.prefill(q, k, v, 0.25)
    k[:, :, 100:], v[:, :, 100:] = 300.0, -300.0  # tokens 50 and on come at keys 100 and on
    again = kernels.prefill(q, k, v, 0.25)
    assert torch.equal(whole[:, :, :50], again[:, :, :50])
    assert not torch.equal(whole[:, :, 50:], again[:, :, 50:])


def test_few_tokens_and_other_types_are_left_to_torch():
    q, k, v = random_parts(2, 2, 16, 16, 8, 8)
    assert kernels.serves_prefill(q, k, v)
    assert not kernels.serves_prefill(q[:, :, :15], k, v)
    assert not kernels.serves_prefill(q.float(), k.float(), v.float())
    assert not kernels.serves_prefill(q, k, v[..., :7])
