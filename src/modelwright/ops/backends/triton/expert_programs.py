"""The Triton programs of gated experts: both products over tiles of rows of one expert, and a token's weighted sum.

A choice is a token and one of its experts, number ``token * top_k + place``; ``order`` lists all of them by expert.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from modelwright.ops.backends.triton.attention_programs import product


@triton.jit
def gate_and_up(
    x,  # [tokens, dim]
    order,  # [choices]
    w_in,  # [experts, 2 * width, dim]
    hidden,  # [choices, width], in the order of the experts
    tile_experts,  # [tiles], the number of experts where a tile is not needed
    tile_rows,  # [tiles], where in the order each begins
    ends,  # [experts], where in the order each one's choices end
    experts,
    dim,
    width,
    top_k,
    x_stride,
    w_expert_stride,
    w_row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``silu(x @ gate.T) * (x @ up.T)``: grid (tiles, blocks of the width)."""
    expert = tl.load(tile_experts + tl.program_id(0)).to(tl.int64)
    if expert >= experts:
        return
    row = tl.load(tile_rows + tl.program_id(0)) + tl.arange(0, ROWS)
    inside = row < tl.load(ends + expert)
    token = tl.load(order + row, mask=inside, other=0).to(tl.int64) // top_k
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate_rows = w_in + expert * w_expert_stride + column.to(tl.int64)[None, :] * w_row_stride
    up_rows = w_in + expert * w_expert_stride + (column + width).to(tl.int64)[None, :] * w_row_stride
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, dim, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        mask = inside[:, None] & (depth < dim)[None, :]
        own = tl.load(x + token[:, None] * x_stride + depth[None, :], mask=mask, other=0.0)
        mask = (depth < dim)[:, None] & (column < width)[None, :]
        gate += product(own, tl.load(gate_rows + depth[:, None], mask=mask, other=0.0))
        up += product(own, tl.load(up_rows + depth[:, None], mask=mask, other=0.0))
    units = gate * tl.sigmoid(gate) * up
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(hidden + place, units.to(hidden.dtype.element_ty), mask=inside[:, None] & (column < width)[None, :])


@triton.jit
def down(
    hidden,  # [choices, width], in the order of the experts
    order,
    w_out,  # [experts, dim, width]
    said,  # [choices, dim], by token
    tile_experts,
    tile_rows,
    ends,
    experts,
    dim,
    width,
    w_expert_stride,
    w_row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``hidden @ w_out.T``, put back in the order of the tokens: grid (tiles, blocks of the dim)."""
    expert = tl.load(tile_experts + tl.program_id(0)).to(tl.int64)
    if expert >= experts:
        return
    row = tl.load(tile_rows + tl.program_id(0)) + tl.arange(0, ROWS)
    inside = row < tl.load(ends + expert)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    out_rows = w_out + expert * w_expert_stride + column.to(tl.int64)[None, :] * w_row_stride
    own_rows = hidden + row.to(tl.int64)[:, None] * width
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        own = tl.load(own_rows + depth[None, :], mask=inside[:, None] & (depth < width)[None, :], other=0.0)
        mask = (depth < width)[:, None] & (column < dim)[None, :]
        result += product(own, tl.load(out_rows + depth[:, None], mask=mask, other=0.0))
    choice = tl.load(order + row, mask=inside, other=0).to(tl.int64)
    place = choice[:, None] * dim + column[None, :]
    tl.store(said + place, result.to(said.dtype.element_ty), mask=inside[:, None] & (column < dim)[None, :])


@triton.jit
def weigh(
    said,  # [tokens * top_k, dim]
    weights,  # [tokens, top_k], fp32
    out,  # [tokens, dim]
    dim,
    top_k,
    COLUMNS: tl.constexpr,
):
    """The weighted sum of what a token's experts said: grid (tokens, blocks of the dim)."""
    first = tl.program_id(0).to(tl.int64) * top_k
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for place in range(top_k):
        one = tl.load(said + (first + place) * dim + column, mask=column < dim, other=0.0)
        total += one.to(tl.float32) * tl.load(weights + first + place)
    place = tl.program_id(0).to(tl.int64) * dim + column
    tl.store(out + place, total.to(out.dtype.element_ty), mask=column < dim)
