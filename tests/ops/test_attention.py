"""The written-out attention against numbers by hand, the fused one against it, and masks that leave nothing to see."""

import math

import pytest
import torch

from modelwright.ops.attention import (
    attention,
    causal_mask,
    fused_attention,
    masked_scores,
    reference_attention,
    upcast_attention,
)


def test_the_reference_is_softmax_of_the_scaled_products():
    q = torch.tensor([[[[2.0, 0.0]]]])
    k = torch.tensor([[[[1.0, 5.0], [0.0, 5.0]]]])
    v = torch.tensor([[[[1.0], [3.0]]]])
    weight = 1 / (1 + math.exp(-2 * 0.5))  # scores 1 and 0
    out = reference_attention(q, k, v, None, scale=0.5)
    assert out.item() == pytest.approx(weight * 1 + (1 - weight) * 3, abs=1e-6)


def test_query_heads_share_key_heads_in_consecutive_groups():
    q = torch.zeros(1, 4, 1, 2)
    k = torch.zeros(1, 2, 1, 2)
    v = torch.tensor([7.0, 9.0]).reshape(1, 2, 1, 1)
    for attend in (reference_attention, fused_attention):
        assert attend(q, k, v, None, 1.0).flatten().tolist() == [7, 7, 9, 9]


def test_a_query_sees_its_own_position_and_before():
    assert causal_mask(2, 5, past=2, device=torch.device("cpu")).tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, False],
    ]


@pytest.mark.parametrize("attend", [reference_attention, fused_attention])
def test_causal_stands_for_the_square_mask(attend):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    square = causal_mask(5, 5, past=0, device=q.device)
    torch.testing.assert_close(attend(q, k, v, None, 0.5, causal=True), attend(q, k, v, square, 0.5))


@pytest.mark.parametrize("rule", ["causal", "boolean", "added", "all"])
@pytest.mark.parametrize(("heads", "v_dim"), [((4, 4), 8), ((4, 2), 8), ((4, 4), 12)])
def test_gradients_with_narrow_values_pass_through_the_tiled_kernel(rule, heads, v_dim):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, count, 9, width, dtype=torch.float64, requires_grad=True)
        for count, width in zip((heads[0], heads[1], heads[1]), (12, 12, v_dim), strict=True)
    )
    sees = causal_mask(9, 9, past=0, device=q.device)
    added = torch.zeros(9, 9, dtype=q.dtype).masked_fill(~sees, -math.inf)
    mask = {"boolean": sees, "added": added}.get(rule)
    found = attention(q, k, v, mask, 0.3, causal=rule == "causal")
    wanted = reference_attention(q, k, v, mask, 0.3, causal=rule == "causal", softmax_dtype=torch.float64)
    away = torch.randn(wanted.shape, dtype=wanted.dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v), away) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    step = found.grad_fn
    while step is not None and "ScaledDotProduct" not in step.name():
        step = step.next_functions[0][0]
    assert step is not None and "FlashAttentionForCpu" in step.name()


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(1, 1, 1, 4, dtype=torch.bool), torch.full((1, 1, 1, 4), -math.inf), torch.full((1, 1, 1, 4), -3.4e38)],
    ids=["boolean", "minus infinity", "lowest float"],
)
def test_a_query_that_sees_nothing_gets_even_weights(mask):
    scores = torch.tensor([3.0, -100.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    assert masked_scores(scores, mask).softmax(dim=-1).flatten().tolist() == [0.25] * 4


def test_scores_are_masked_in_fp32():
    assert masked_scores(torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16), None).dtype == torch.float32
    half = torch.tensor([0.0, torch.finfo(torch.float16).min], dtype=torch.float16)
    assert masked_scores(torch.ones(2, dtype=torch.float16), half).tolist() == [1.0, 1.0 - 65504]


@pytest.mark.parametrize("attend", [reference_attention, fused_attention])
def test_dropout_scales_what_it_keeps(attend):
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 4000, 1), torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
    out = attend(q, k, v, None, 1.0, dropout=0.5)
    assert set(out.flatten().tolist()) == {0.0, 1.0, 2.0}
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)


def test_the_softmax_runs_in_the_type_asked_for():
    scores, mask = torch.tensor([[1.0, 1.0001, 70000.0]]), torch.tensor([[True, True, False]])
    assert masked_scores(scores, mask, torch.float16).tolist() == [[1.0, 1.0, -65504.0]]
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
    wide = reference_attention(q, k, v, None, 0.3, causal=True)
    narrow = reference_attention(q, k, v, None, 0.3, causal=True, softmax_dtype=torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, atol=3e-2, rtol=0)


@pytest.mark.parametrize("product", [reference_attention, fused_attention])
def test_upcasting_is_the_product_in_fp32_whatever_autocast_says(product):
    q, k, v = (part.bfloat16() for part in torch.randn(3, 2, 4, 5, 8))
    mask = causal_mask(5, 5, past=0, device=q.device)
    wanted = product(q.float(), k.float(), v.float(), mask, 0.3).bfloat16()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = upcast_attention(product, q, k, v, mask, 0.3)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted, atol=2**-7, rtol=0)
    causal = upcast_attention(product, q, k, v, None, 0.3, causal=True)
    torch.testing.assert_close(causal, wanted, atol=2**-7, rtol=0)


def test_upcasting_keeps_scores_that_half_precision_cannot_hold():
    """200 * 200 * 8 is more than 65504, the largest number of fp16."""
    q, k = torch.full((1, 1, 1, 8), 200.0).half(), torch.full((1, 1, 3, 8), 200.0).half()
    k[:, :, 1:] = 100
    v = torch.eye(3)[None, None].half()
    assert not reference_attention(q, k, v, None, 1 / 8).isfinite().all()
    for product in (reference_attention, fused_attention):
        assert torch.equal(upcast_attention(product, q, k, v, None, 1 / 8), v[:, :, :1])
