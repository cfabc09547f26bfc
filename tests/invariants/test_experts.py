"""Stacked experts equal the loop over them, values and gradients; the segmented product equals the grouped one."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.experts import grouped_experts, grouped_linear, looped_experts, segmented_linear

widths = st.sampled_from([1, 3, 4, 8, 12])
seeds = st.integers(0, 2**16)


@given(st.integers(0, 9), st.integers(1, 6), st.data(), widths, widths, st.booleans(), seeds)
def test_grouped_experts_equal_the_loop(tokens, experts, data, dim, width, gated, seed):
    top_k = data.draw(st.integers(1, experts))
    torch.manual_seed(seed)
    x = torch.randn(tokens, dim, requires_grad=True)
    w_in = torch.randn(experts, (2 if gated else 1) * width, dim, requires_grad=True)
    w_out = torch.randn(experts, dim, width, requires_grad=True)
    chosen = torch.rand(tokens, experts).argsort(dim=-1)[:, :top_k]
    weights = torch.rand(tokens, top_k, requires_grad=True)
    leaves = [x, w_in, w_out, weights]
    grouped = grouped_experts(x, chosen, weights, w_in, w_out, F.silu, gated)
    looped = looped_experts(x, chosen, weights, w_in, w_out, F.silu, gated)
    torch.testing.assert_close(grouped, looped, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(x.shape)
    for ours, theirs in zip(
        torch.autograd.grad(grouped, leaves, upstream), torch.autograd.grad(looped, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), widths, widths, seeds)
def test_the_segmented_product_equals_the_grouped_one(counts, dim, width, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(sum(counts), dim), torch.randn(len(counts), width, dim)
    rows = torch.tensor(counts)
    by_row = [weight[e] @ row for row, e in zip(x, torch.arange(len(counts)).repeat_interleave(rows), strict=True)]
    expected = torch.stack(by_row) if by_row else x.new_empty(0, width)
    torch.testing.assert_close(grouped_linear(x, weight, rows), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(segmented_linear(x, weight, rows), expected, rtol=1e-5, atol=1e-5)
