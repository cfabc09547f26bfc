"""The latent's layout, the rule that picks a path, and what both paths share besides their result (see invariants)."""

import pytest
import torch

from modelwright.ops.attention import reference_attention
from modelwright.ops.latent import absorbed_attention, expand_latent, expanded_attention, prefers_absorbing


def test_projected_latents_are_key_then_value_head_by_head():
    kv = torch.arange(10.0).reshape(1, 1, 10)  # 2 heads of [3 nope | 2 value]
    k_rope = torch.tensor([[[100.0]]])
    k, v = expand_latent(kv, k_rope, heads=2, nope=3)
    assert k.tolist() == [[[[0, 1, 2, 100]], [[5, 6, 7, 100]]]]
    assert v.tolist() == [[[[3, 4]], [[8, 9]]]]


@pytest.mark.parametrize(
    ("tokens", "keys", "absorbs"),
    [
        (1, 4097, True),  # decode
        (1, 2, True),  # even with one past token: 512 * 256 + 2 * 1024 < 2 * 512 * 256 + 2 * 256
        (1, 1, False),  # no past
        (4096, 4096, False),  # whole prefill
        (1024, 4096, False),  # a large chunk: its queries cost more in the latent space than expanding the past
        (16, 4096, True),
    ],
)
def test_the_path_that_multiplies_less_is_picked(tokens, keys, absorbs):
    assert prefers_absorbing(tokens, keys, nope=128, v_dim=128, rank=512) is absorbs


def test_expanding_uses_the_product_it_is_given():
    torch.manual_seed(0)
    q_nope, q_rope = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 2)
    kv, k_rope = torch.randn(1, 3, 2 * (4 + 5)), torch.randn(1, 3, 2)
    calls = []

    def product(*args):
        calls.append(args)
        return reference_attention(*args)

    out = expanded_attention(q_nope, q_rope, kv, k_rope, None, 0.3, causal=True, product=product)
    assert len(calls) == 1
    torch.testing.assert_close(out, expanded_attention(q_nope, q_rope, kv, k_rope, None, 0.3, causal=True))


def test_dropout_of_the_absorbed_weights_scales_what_it_keeps():
    torch.manual_seed(0)
    q_nope, q_rope = torch.zeros(1, 1, 4000, 1), torch.zeros(1, 1, 4000, 1)
    latent, k_rope, kv_b = torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.ones(2, 1)
    out = absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b, None, 1.0, dropout=0.5)
    assert set(out.flatten().tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b, None, 1.0), torch.ones(1, 1, 4000, 1))
