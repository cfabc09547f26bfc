"""Grouped-query and merged attention: projections apart or fused are one function; what the backend is asked."""

import pytest
import torch

from modelwright.attention import DenseAttention
from modelwright.layers import FusedSelfAttention, GroupedQueryAttention, RotaryEmbedding, Slot

DIM, HEADS, KV_HEADS, HEAD_DIM = 12, 4, 2, 4


class Recorder(DenseAttention):
    """A dense backend that remembers what it was asked."""

    def attend(self, layer, q, k, v, *, scale, dropout=0.0):
        self.asked = {"layer": layer, "shapes": (q.shape, k.shape, v.shape), "scale": scale, "dropout": dropout}
        return super().attend(layer, q, k, v, scale=scale, dropout=dropout)


def grouped(**options) -> GroupedQueryAttention:
    torch.manual_seed(0)
    return GroupedQueryAttention(3, DIM, HEADS, KV_HEADS, HEAD_DIM, **options)


def run(layer: GroupedQueryAttention, x: torch.Tensor, backend: DenseAttention | None = None) -> torch.Tensor:
    rope = RotaryEmbedding(HEAD_DIM, 10000.0)(torch.arange(x.shape[1])[None])
    return layer(x, rope, backend or DenseAttention())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("slices", [1, 2])
def test_fused_and_sliced_projections_equal_separate_ones(bias, slices):
    apart, fused = grouped(bias=bias), grouped(bias=bias, fused=True, slices=slices)
    with torch.no_grad():
        for name, slot in fused.slots().items():
            fused.get_parameter(slot.parameter)[slot.index].copy_(apart.get_parameter(name))
        fused.o_proj.load_state_dict(apart.o_proj.state_dict())
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(run(fused, x), run(apart, x), rtol=1e-5, atol=1e-6)


def test_slots_cover_the_fused_projection_exactly():
    layer = grouped(bias=True, fused=True)
    assert layer.slots()["k_proj.bias"] == Slot("qkv_proj.bias", 16, 24)
    assert layer.slots()["k_proj.weight"].index == (slice(16, 24),)
    assert [slot.stop for name, slot in layer.slots().items() if name.endswith("weight")] == [16, 24, 32]
    assert len(layer.qkv_proj.weight) == 32
    assert grouped().slots() == {}
    assert [*grouped(fused=True).slots()] == ["q_proj.weight", "k_proj.weight", "v_proj.weight"]


def test_the_backend_gets_heads_scale_and_dropout_of_training_only():
    layer, backend = grouped(dropout=0.25), Recorder()
    run(layer, torch.randn(2, 5, DIM), backend)
    assert backend.asked == {
        "layer": 3,
        "shapes": ((2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
        "scale": 0.5,
        "dropout": 0.25,
    }
    run(layer.eval(), torch.randn(2, 5, DIM), backend)
    assert backend.asked["dropout"] == 0.0


def test_merged_attention_is_the_written_out_one():
    torch.manual_seed(0)
    layer = FusedSelfAttention(0, dim=6, heads=2)
    x = torch.randn(2, 3, 6)
    q, k, v = (part.reshape(2, 3, 2, 3).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(2, 3) / 3**0.5).softmax(dim=-1)
    expected = layer.proj((weights @ v).transpose(1, 2).reshape(2, 3, 6))
    torch.testing.assert_close(layer(x, DenseAttention(causal=False)), expected, rtol=1e-5, atol=1e-6)


def test_merged_attention_drops_weights_and_output():
    torch.manual_seed(0)
    layer, backend = FusedSelfAttention(0, dim=4, heads=2, bias=False, dropout=0.5), Recorder(causal=False)
    assert layer.qkv.bias is None and layer.proj.bias is not None
    out = layer(torch.randn(1, 500, 4), backend)
    assert backend.asked["dropout"] == 0.5
    assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (layer.eval()(torch.randn(1, 500, 4), backend) == 0).sum() == 0


def test_the_grouped_layout_holds_each_key_heads_rows_together():
    torch.manual_seed(0)
    how = {"bias": True, "out_bias": False}
    apart = GroupedQueryAttention(0, 16, 4, 2, 4, **how)
    grouped = GroupedQueryAttention(0, 16, 4, 2, 4, fused=True, grouped=True, **how)
    with torch.no_grad():
        for name, slot in grouped.slots().items():
            grouped.get_parameter(slot.parameter)[slot.index] = apart.get_parameter(name)
        grouped.o_proj.weight.copy_(apart.o_proj.weight)
    rows, first = grouped.qkv_proj.weight, apart.q_proj.weight
    assert torch.equal(rows[:8], first[:8]) and torch.equal(rows[16:24], first[8:])
    assert torch.equal(rows[8:12], apart.k_proj.weight[:4]) and torch.equal(rows[12:16], apart.v_proj.weight[:4])
    assert apart.o_proj.bias is None and apart.q_proj.bias is not None
    x, rope = torch.randn(2, 5, 16), RotaryEmbedding(4, 100.0)(torch.arange(5).expand(2, -1))
    torch.testing.assert_close(grouped(x, rope, DenseAttention()), apart(x, rope, DenseAttention()))
