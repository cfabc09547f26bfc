"""Gated experts on a GPU: Triton's programs and torch's grouped product held to the loop alike."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.triton import load
from modelwright.ops.backends.triton.experts import Tiles
from modelwright.ops.experts import experts, grouped_experts, looped_experts, segmented_linear
from tests.ops.gpu import CLOSE, DEVICE, WAYS, needs_triton

WAY_OF = {True: gpu_kernels.experts, False: partial(grouped_experts, act=F.silu)}


def stacks(experts: int, width: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """``w_in`` ``[experts, 2 * width, dim]`` and ``w_out`` ``[experts, dim, width]``, whose products stay near 1."""
    w_in, w_out = torch.randn(experts, 2 * width, dim) / dim**0.5, torch.randn(experts, dim, width) / width**0.5
    return w_in.to(dtype), w_out.to(dtype)


def choices(tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Different experts of each token, and their weights."""
    return torch.rand(tokens, experts).argsort(dim=-1)[:, :top_k], torch.rand(tokens, top_k)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "width", "dim"),
    [(1, 6, 2, 24, 40), (5, 3, 3, 70, 16), (60, 6, 2, 16, 8), (70, 2, 1, 8, 72)],
)
def test_experts_equal_the_loop(fast, dtype, tokens, experts, top_k, width, dim):
    torch.manual_seed(0)
    (w_in, w_out), (chosen, weights) = stacks(experts, width, dim, dtype), choices(tokens, experts, top_k)
    x = torch.randn(tokens, dim + 3).to(dtype)[:, :dim]  # rows further apart than they are wide
    out = WAY_OF[fast](*(part.to(DEVICE) for part in (x, chosen, weights, w_in, w_out)))
    assert out.dtype == dtype
    expected = looped_experts(x.float(), chosen, weights, w_in.float(), w_out.float(), F.silu)
    torch.testing.assert_close(out.cpu().float(), expected, **CLOSE[dtype])


@pytest.mark.parametrize("fast", WAYS)
def test_experts_nobody_chose_are_not_read(fast):
    w_in, w_out = stacks(3, 16, 16)
    w_in[1], w_out[1] = torch.nan, torch.nan
    chosen = torch.tensor([[0, 2], [2, 0]])
    out = WAY_OF[fast](*(part.to(DEVICE) for part in (torch.randn(2, 16), chosen, torch.ones(2, 2), w_in, w_out)))
    assert out.isfinite().all()


@pytest.mark.parametrize("fast", WAYS)
def test_no_tokens_give_no_rows(fast):
    chosen, weights = choices(0, 3, 2)
    out = WAY_OF[fast](*(part.to(DEVICE) for part in (torch.zeros(0, 16), chosen, weights, *stacks(3, 16, 16))))
    assert out.shape == (0, 16)


@pytest.mark.parametrize("fast", WAYS)
def test_half_precision_sums_experts_in_the_routers_precision(fast):
    """Each expert says 64; added one by one in bfloat16, the 0.25 that two of them add would be lost each time."""
    x, ones = torch.full((1, 8), 4.0, dtype=torch.bfloat16), torch.ones(3, 16, 8, dtype=torch.bfloat16)
    w_out = torch.full((3, 8, 8), 2.0**-7, dtype=torch.bfloat16)  # of silu(32) * 32, which is 1024
    weights = torch.tensor([[1.0, 0.00390625, 0.00390625]])  # 1 + 2^-8 + 2^-8
    parts = x, torch.tensor([[0, 1, 2]]), weights, ones, w_out
    assert WAY_OF[fast](*(part.to(DEVICE) for part in parts))[0, 0].item() == 64.5


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 7), st.sampled_from([1, 3, 16]), st.integers(0, 2**16))
def test_tiles_hold_every_choice_once_with_its_expert(tokens, experts, size, seed):
    torch.manual_seed(seed)
    chosen = torch.randint(experts, (tokens, 2))
    tiles = Tiles.of(chosen, experts, size)
    held = []
    for expert, start in zip(tiles.experts.tolist(), tiles.rows.tolist(), strict=True):
        if expert == experts:
            continue
        own = tiles.order[start : min(start + size, int(tiles.ends[expert]))].tolist()
        assert own and {int(chosen.flatten()[choice]) for choice in own} == {expert}
        held += own
    assert sorted(held) == list(range(2 * tokens))


@needs_triton
def test_widths_that_do_not_fit_are_refused():
    w_in, w_out = stacks(3, 8, 16)
    with pytest.raises(ValueError, match=r"x \(12\) must be as wide as w_out is long \(16\), .* got \[16, 16\]"):
        gpu_kernels.experts(torch.zeros(1, 12), *choices(1, 3, 2), w_in, w_out)


@needs_triton
def test_the_kernels_are_chosen_where_they_serve(monkeypatch):
    torch.manual_seed(0)
    ran: list[Tensor] = []
    own = gpu_kernels.experts
    monkeypatch.setattr(gpu_kernels, "experts", lambda x, *rest: ran.append(x) or own(x, *rest))
    x, chosen, weights, w_in, w_out = (
        part.to(DEVICE) for part in (torch.randn(3, 16), *choices(3, 4, 2), *stacks(4, 8, 16))
    )
    monkeypatch.setattr(load, "DEVICES", [DEVICE.type])
    monkeypatch.setattr(kernels, "serves_experts", lambda *_: False)  # of the CPU, which come first
    expected = grouped_experts(x, chosen, weights, w_in, w_out, F.silu)
    experts(x, chosen, weights, w_in.clone().requires_grad_(), w_out, F.silu)
    with torch.no_grad():
        experts(x, chosen, weights, w_in, w_out, F.gelu)
        experts(x, chosen, weights, w_in, w_out, F.silu, dropout=0.5)
        experts(x, chosen, weights, w_in, w_out, F.silu, product=segmented_linear)
        experts(x.double(), chosen, weights, w_in.double(), w_out.double(), F.silu)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            experts(x, chosen, weights, w_in, w_out, F.silu)
        assert not ran
        torch.testing.assert_close(experts(x, chosen, weights, w_in, w_out, F.silu), expected)
    assert len(ran) == 1
