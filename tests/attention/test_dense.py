"""DenseAttention: every mask and cache gives each query exactly the keys it should see, on every path."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, StaticCache

from modelwright.attention import DenseAttention
from modelwright.ops.attention import reference_attention
from modelwright.ops.backends import cpu as kernels

BATCH, HEADS, DIM, TOKENS = 2, 4, 8, 6
SCALE = DIM**-0.5


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, BATCH, HEADS, TOKENS, DIM).unbind(0)


def alone(qkv: tuple[torch.Tensor, ...], row: int, keep: slice, causal: bool = True) -> torch.Tensor:
    """``[heads, kept tokens, dim]`` of one row computed without its padding."""
    q, k, v = (part[row : row + 1, :, keep] for part in qkv)
    return reference_attention(q, k, v, None, SCALE, causal=causal)[0]


@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        ({}, [True]),
        ({"causal": False}, [False]),
        ({"mask": torch.tensor([[1] * 20, [0] * 2 + [1] * 18])}, []),
        ({"fused": False}, []),
        ({"upcast": True}, []),
    ],
    ids=str,
)
@torch.inference_mode()
def test_whole_passes_are_computed_by_the_kernel(rule, calls, monkeypatch):
    """As they are without inference mode, where torch computes; ``calls`` are the kernel's, causal or not."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, BATCH, HEADS, 20, DIM).bfloat16().unbind(0)
    found, own = [], kernels.prefill
    monkeypatch.setattr(kernels, "prefill", lambda *a, causal: found.append(causal) or own(*a, causal=causal))
    out = DenseAttention(**rule).attend(0, q, k, v, scale=SCALE)
    assert found == (calls if kernels.serves_prefill(q, k, v) else [])
    with torch.inference_mode(False), torch.enable_grad():
        wanted = DenseAttention(**rule).attend(0, q.clone(), k.clone(), v.clone(), scale=SCALE)
    torch.testing.assert_close(out, wanted, rtol=2**-6, atol=2**-6)


def static_cache(length: int) -> StaticCache:
    return StaticCache(config=LlamaConfig(num_hidden_layers=1), max_cache_len=length)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        (None, [slice(0, 6), slice(0, 6)]),
        ([[1] * 6, [1] * 6], [slice(0, 6), slice(0, 6)]),
        ([[1] * 6, [0, 0, 1, 1, 1, 1]], [slice(0, 6), slice(2, 6)]),
        ([[1, 1, 1, 1, 0, 0], [1] * 6], [slice(0, 4), slice(0, 6)]),
    ],
    ids=["none", "all real", "left", "right"],
)
def test_a_padded_batch_gives_each_row_its_own_result(qkv, mask, rows, causal, fused):
    mask = None if mask is None else torch.tensor(mask)
    out = DenseAttention(mask, causal=causal, fused=fused).attend(0, *qkv, scale=SCALE)
    assert out.isfinite().all()
    for row, keep in enumerate(rows):
        torch.testing.assert_close(out[row, :, keep], alone(qkv, row, keep, causal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])], ids=["unpadded", "left"])
@pytest.mark.parametrize("make_cache", [DynamicCache, lambda: static_cache(9)], ids=["dynamic", "static"])
@pytest.mark.parametrize("chunks", [[6], [4, 2], [3, 1, 1, 1], [1, 5]], ids=str)
def test_any_split_over_a_cache_equals_one_pass(qkv, mask, make_cache, chunks):
    whole = DenseAttention(mask).attend(0, *qkv, scale=SCALE)
    cache, past, parts = make_cache(), 0, []
    for size in chunks:
        upto = None if mask is None else mask[:, : past + size]
        new = (part[:, :, past : past + size] for part in qkv)
        parts.append(DenseAttention(upto, cache, past).attend(0, *new, scale=SCALE))
        past += size
    joined = torch.cat(parts, dim=2)
    real = torch.ones(BATCH, TOKENS) if mask is None else mask
    where = real.bool()[:, None, :, None].expand_as(whole)
    torch.testing.assert_close(joined[where], whole[where], rtol=1e-5, atol=1e-5)


def test_unused_slots_of_a_static_cache_stay_unseen_without_a_causal_rule(qkv):
    out = DenseAttention(cache=static_cache(9), causal=False).attend(0, *qkv, scale=SCALE)
    torch.testing.assert_close(out[0], alone(qkv, 0, slice(0, 6), causal=False), rtol=1e-5, atol=1e-5)


def test_a_mask_may_be_longer_than_the_keys(qkv):
    long = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [1] * 8])
    expected = DenseAttention(long[:, :6]).attend(0, *qkv, scale=SCALE)
    torch.testing.assert_close(DenseAttention(long).attend(0, *qkv, scale=SCALE), expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 6, 6), (2, 1, 6, 6), (2, 4, 6, 6), (1, 4, 1, 6), (2, 1, 6, 1)], ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["boolean", "added"])
def test_a_four_dimensional_mask_is_the_whole_rule(qkv, shape, added, fused):
    torch.manual_seed(1)
    sees = torch.rand(shape) < 0.7
    sees[..., 0] = True
    mask = torch.zeros(shape).masked_fill(~sees, torch.finfo(torch.float32).min) if added else sees
    out = DenseAttention(mask, fused=fused).attend(0, *qkv, scale=SCALE)
    expected = reference_attention(*qkv, sees.expand(BATCH, HEADS, 6, 6), SCALE)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("added", [False, True], ids=["boolean", "added"])
def test_a_four_dimensional_mask_need_not_reach_the_unused_slots(qkv, added):
    sees = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    mask = torch.zeros(1, 1, 6, 6).masked_fill(~sees, -torch.inf) if added else sees
    out = DenseAttention(mask, static_cache(9)).attend(0, *qkv, scale=SCALE)
    torch.testing.assert_close(out, DenseAttention().attend(0, *qkv, scale=SCALE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_blind_query_gives_finite_numbers_and_gradients(qkv, fused):
    sees = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    sees[..., 2, :] = False
    q = qkv[0].clone().requires_grad_()
    out = DenseAttention(sees, fused=fused).attend(0, q, *qkv[1:], scale=SCALE)
    out.sum().backward()
    assert out.isfinite().all() and q.grad is not None and q.grad.isfinite().all()
    seeing = DenseAttention(causal=False).attend(0, *qkv, scale=SCALE)
    torch.testing.assert_close(out, seeing, rtol=1e-5, atol=1e-5)  # the blind one looks at everything, as the others do


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 6, 6)], ids=["short", "zeros", "3-D"]
)
def test_a_mask_that_does_not_cover_the_past_is_refused(qkv, mask):
    with pytest.raises(ValueError, match=r"each of the 6 past and new tokens, or have 4 dimensions; got \[2, "):
        DenseAttention(mask).attend(0, *qkv, scale=SCALE)


NOPE, ROPE, VALUE, RANK = 4, 2, 3, 16


@pytest.fixture
def latents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, nn.Linear]:
    """q_nope, q_rope, latent, k_rope and kv_b of one short sequence."""
    torch.manual_seed(0)
    queries = torch.randn(BATCH, HEADS, TOKENS, NOPE), torch.randn(BATCH, HEADS, TOKENS, ROPE)
    cached = torch.randn(BATCH, TOKENS, RANK), torch.randn(BATCH, TOKENS, ROPE)
    return *queries, *cached, nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False)


class CountedLinear(nn.Linear):
    """Stands for an adapted layer: its forward must be used, so its weight is not handed over."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input) + 1.0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("make_cache", [DynamicCache, lambda: static_cache(9)], ids=["dynamic", "static"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])], ids=["unpadded", "left"])
def test_latent_decode_equals_one_pass_and_caches_latents_only(latents, mask, make_cache, fused):
    q_nope, q_rope, latent, k_rope, kv_b = latents
    whole = DenseAttention(mask, fused=fused).attend_latent(0, *latents, kv_b_weight=latents[-1].weight, scale=0.4)
    assert whole.shape == (BATCH, HEADS, TOKENS, VALUE)
    cache = make_cache()
    for token in range(TOKENS):
        now = slice(token, token + 1)
        upto = None if mask is None else mask[:, : token + 1]
        out = DenseAttention(upto, cache, past=token, fused=fused).attend_latent(
            0,
            *(q_nope[:, :, now], q_rope[:, :, now], latent[:, now], k_rope[:, now], kv_b),
            kv_b_weight=kv_b.weight,
            scale=0.4,
        )
        rows = [row for row in range(BATCH) if mask is None or mask[row, token]]
        torch.testing.assert_close(out[rows], whole[rows][:, :, now], rtol=1e-5, atol=1e-5)
    keys, values = cache.layers[0].keys, cache.layers[0].values
    assert torch.equal(keys[:, 0, :TOKENS], k_rope) and torch.equal(values[:, 0, :TOKENS], latent)
    assert keys.shape[1] == values.shape[1] == 1


def test_an_adapted_projection_keeps_its_effect_at_decode(latents):
    q_nope, q_rope, latent, k_rope, kv_b = latents
    adapted = CountedLinear(RANK, kv_b.out_features, bias=False)
    adapted.load_state_dict(kv_b.state_dict())
    whole = DenseAttention().attend_latent(0, q_nope, q_rope, latent, k_rope, adapted, kv_b_weight=None, scale=0.4)
    cache = DynamicCache()
    for now in (slice(0, 5), slice(5, 6)):
        out = DenseAttention(cache=cache, past=now.start).attend_latent(
            0,
            *(q_nope[:, :, now], q_rope[:, :, now], latent[:, now], k_rope[:, now], adapted),
            kv_b_weight=None,
            scale=0.4,
        )
    assert adapted.calls == 3
    torch.testing.assert_close(out, whole[:, :, 5:], rtol=1e-5, atol=1e-5)


def test_a_plain_projection_is_absorbed_at_decode_and_called_in_a_prefill(latents):
    q_nope, q_rope, latent, k_rope, kv_b = latents
    lengths = []
    kv_b.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    cache = DynamicCache()
    for now in (slice(0, 5), slice(5, 6)):
        DenseAttention(cache=cache, past=now.start).attend_latent(
            0,
            *(q_nope[:, :, now], q_rope[:, :, now], latent[:, now], k_rope[:, now], kv_b),
            kv_b_weight=kv_b.weight,
            scale=0.4,
        )
    assert lengths == [5]
