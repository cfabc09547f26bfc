"""Two ways to attend give one result: fused and written out, absorbed and expanded, whatever the shapes and masks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.attention import fused_attention, reference_attention
from modelwright.ops.latent import absorbed_attention, expanded_attention

few = st.integers(1, 4)


@st.composite
def masks(draw, batch: int, heads: int, tokens: int, keys: int) -> torch.Tensor | None:
    """None, or a boolean or added mask that broadcasts to the scores and leaves every query the first key."""
    kind = draw(st.sampled_from(["none", "boolean", "added"]))
    if kind == "none":
        return None
    shape = [draw(st.sampled_from([1, size])) for size in (batch, heads, tokens)] + [keys]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if kind == "added":
        return torch.randn(shape, generator=generator)
    sees = torch.rand(shape, generator=generator) < 0.6
    sees[..., 0] = True
    return sees


@given(st.data(), few, few, few, few, st.integers(0, 5), few, few)
def test_fused_attention_equals_the_reference(data, batch, kv_heads, groups, tokens, past, k_dim, v_dim):
    heads, keys = kv_heads * groups, past + tokens
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    q, k = torch.randn(batch, heads, tokens, k_dim), torch.randn(batch, kv_heads, keys, k_dim)
    v = torch.randn(batch, kv_heads, keys, v_dim)
    mask = data.draw(masks(batch, heads, tokens, keys))
    torch.testing.assert_close(
        fused_attention(q, k, v, mask, 0.7), reference_attention(q, k, v, mask, 0.7), rtol=1e-5, atol=1e-5
    )


@given(st.data(), few, few, few, st.integers(0, 5), few, few, few, st.integers(1, 8))
def test_absorbed_attention_equals_expanded(data, batch, heads, tokens, past, nope, rope, v_dim, rank):
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    keys = past + tokens
    q_nope, q_rope = torch.randn(batch, heads, tokens, nope), torch.randn(batch, heads, tokens, rope)
    latent, k_rope = torch.randn(batch, keys, rank), torch.randn(batch, keys, rope)
    kv_b = torch.randn(heads * (nope + v_dim), rank) / rank**0.5
    mask, scale = data.draw(masks(batch, heads, tokens, keys)), (nope + rope) ** -0.5
    for part in (leaves := [q_nope, q_rope, latent, k_rope, kv_b]):
        part.requires_grad_()
    absorbed = absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b, mask, scale)
    expanded = expanded_attention(q_nope, q_rope, latent @ kv_b.T, k_rope, mask, scale)
    torch.testing.assert_close(absorbed, expanded, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(absorbed.shape)
    for ours, theirs in zip(
        torch.autograd.grad(absorbed, leaves, upstream), torch.autograd.grad(expanded, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
