"""What a rotation must keep, in both pair layouts: lengths, and products that depend on the distance only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.rotary import inverse_frequencies, rope_table, rotate_half_split, rotate_interleaved

LAYOUTS = [rotate_half_split, rotate_interleaved]
dims = st.sampled_from([2, 4, 8, 64])
positions = st.integers(0, 4000)
seeds = st.integers(0, 2**16)


def turned(rotate, x: torch.Tensor, position: int) -> torch.Tensor:
    """``[dim]`` rotated to a position."""
    table = rope_table(torch.tensor([[position]]), inverse_frequencies(len(x), 10000.0))
    return rotate(x[None, None, None], *table).flatten()


@pytest.mark.parametrize("rotate", LAYOUTS)
@given(dims, positions, seeds)
def test_rotation_keeps_lengths(rotate, dim, position, seed):
    x = torch.randn(dim, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(turned(rotate, x, position).norm(), x.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rotate", LAYOUTS)
@given(dims, positions, positions, st.integers(0, 100), seeds)
def test_products_depend_on_the_distance_only(rotate, dim, here, there, distance, seed):
    q, k = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed)).unbind(0)
    one = turned(rotate, q, here + distance) @ turned(rotate, k, here)
    other = turned(rotate, q, there + distance) @ turned(rotate, k, there)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)  # fp32 angles of a few thousand radians


@given(dims, positions, seeds)
def test_the_layouts_agree_after_reordering(dim, position, seed):
    x = torch.randn(dim, generator=torch.Generator().manual_seed(seed))
    halves = torch.cat((x[0::2], x[1::2]))  # pairs (2i, 2i+1) moved to (i, i + dim/2)
    assert torch.equal(turned(rotate_interleaved, x, position), turned(rotate_half_split, halves, position))
