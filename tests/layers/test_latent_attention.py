"""Latent attention against the paper's equations written out head by head, its names, and every floating type."""

import pytest
import torch
from transformers import DynamicCache

from modelwright.attention import DenseAttention
from modelwright.layers import LatentAttention, RMSNorm, RotaryEmbedding

DIM, HEADS, NOPE, ROPE, VALUE, RANK = 12, 3, 4, 2, 5, 8


def make(**options) -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(0, DIM, HEADS, NOPE, ROPE, VALUE, RANK, **options)


def rotation(tokens: int):
    return RotaryEmbedding(ROPE, 10000.0, interleaved=True)(torch.arange(tokens)[None])


def by_hand(layer: LatentAttention, x: torch.Tensor) -> torch.Tensor:
    """``[tokens, dim]`` of one sequence, one head and one query after the other."""
    tokens, rope = len(x), rotation(len(x))
    down = layer.kv_a_proj_with_mqa(x)
    latent, k_rope = layer.kv_a_layernorm(down[:, :RANK]), rope(down[None, None, :, RANK:])[0, 0]
    query = layer.q_proj(x) if layer.q_rank is None else layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(x)))
    joined = []
    for head in range(HEADS):
        q = query[:, head * (NOPE + ROPE) : (head + 1) * (NOPE + ROPE)]
        q = torch.cat((q[:, :NOPE], rope(q[None, None, :, NOPE:])[0, 0]), dim=-1)
        kv = latent @ layer.kv_b_proj.weight[head * (NOPE + VALUE) : (head + 1) * (NOPE + VALUE)].T
        k = torch.cat((kv[:, :NOPE], k_rope), dim=-1)
        rows = [(q[t] @ k[: t + 1].T * layer.scale).softmax(-1) @ kv[: t + 1, NOPE:] for t in range(tokens)]
        joined.append(torch.stack(rows))
    return layer.o_proj(torch.cat(joined, dim=-1))


@pytest.mark.parametrize(
    "options",
    [{}, {"q_rank": 6}, {"q_rank": 6, "bias": True, "softmax_gain": 1.5}, {"slices": 3}, {"q_rank": 6, "slices": 3}],
    ids=str,
)
def test_equals_the_equations(options):
    layer, x = make(**options), torch.randn(2, 5, DIM)
    out = layer(x, rotation(5), DenseAttention())
    torch.testing.assert_close(out, torch.stack([by_hand(layer, row) for row in x]), rtol=1e-4, atol=1e-5)


def test_official_names_and_where_a_bias_goes():
    assert [*make().state_dict()] == [
        "q_proj.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_layernorm.weight",
        "kv_b_proj.weight",
        "o_proj.weight",
    ]
    names = make(q_rank=6, bias=True).state_dict()
    assert [name for name in names if name.endswith("bias")] == [
        "q_a_proj.bias",
        "kv_a_proj_with_mqa.bias",
        "o_proj.bias",
    ]
    assert {"q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight"} <= {*names}


def test_latent_norms_keep_their_own_epsilon():
    assert {norm.eps for norm in make(q_rank=6).modules() if isinstance(norm, RMSNorm)} == {1e-6}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_follow_fp32(dtype):
    layer, x = make(), torch.randn(1, 5, DIM)
    expected = layer(x, rotation(5), DenseAttention())
    out = layer.to(dtype)(x.to(dtype), rotation(5), DenseAttention())
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)


def test_autocast_caches_one_type_and_trains():
    layer, x, cache = make(), torch.randn(1, 5, DIM), DynamicCache()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, rotation(5), DenseAttention(cache=cache))
    assert cache.layers[0].keys.dtype == cache.layers[0].values.dtype == torch.bfloat16
    out.float().sum().backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
