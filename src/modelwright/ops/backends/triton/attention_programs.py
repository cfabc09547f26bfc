"""The Triton programs of attention over pages: a tile of queries over a share of the keys, and the sum of the shares.

A row of a tile is one head of one token, all of them heads that read the same keys. The online softmax is in fp32 and
base 2 (Dao, arXiv:2307.08691), and shares are put together by their logarithms of sums.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


@triton.jit
def product(a, b):
    """``a @ b`` in fp32; the interpreter keeps bfloat16 as integers and must be given what they stand for."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def stored(
    rows,
    scales,
    page,
    place,
    head,
    inside,
    page_stride,
    place_stride,
    head_stride,
    scale_page_stride,
    scale_place_stride,
    scale_head_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
):
    """``[keys, BLOCK]`` of one head in TYPE, zeros outside; int8 multiplied with its scales."""
    column = tl.arange(0, BLOCK)
    start = page * page_stride + place * place_stride + head * head_stride
    mask = inside[:, None] & (column < WIDTH)[None, :]
    tile = tl.load(rows + start[:, None] + column[None, :], mask=mask, other=0)
    if scales is not None:
        start = page * scale_page_stride + place * scale_place_stride + head * scale_head_stride
        tile = tile.to(tl.float32) * tl.load(scales + start, mask=inside, other=0.0)[:, None]
    return tile.to(TYPE)


@triton.jit
def query_rows(q, token, head, real, token_stride, head_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """``[rows, BLOCK]`` queries, zeros where there are none."""
    column = tl.arange(0, BLOCK)
    start = token * token_stride + head * head_stride
    return tl.load(q + start[:, None] + column[None, :], mask=real[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def attend(
    q,  # [tokens, heads, K_WIDTH]
    q_inner,  # [tokens, heads, V_WIDTH], to be multiplied with the values too; None unless they are latents
    keys,
    key_scales,  # None unless the keys are int8
    values,
    value_scales,
    contexts,  # [sequences]
    tables,  # [sequences, pages at most]
    starts,  # [sequences + 1]; None where each sequence has one token
    tile_sequences,  # [tiles], and where in the row each tile begins; None likewise
    tile_tokens,
    out,  # [tokens, heads, V_WIDTH]; with SPLIT [tokens, heads, shares, V_WIDTH], fp32
    sums,  # with SPLIT [tokens, heads, shares], log2 of the sums of exponentials; else None
    scale,  # times log2(e)
    heads,
    group,  # heads that read the same keys
    table_stride,
    q_token_stride,
    q_head_stride,
    inner_token_stride,
    inner_head_stride,
    key_page_stride,
    key_place_stride,
    key_head_stride,
    key_scale_page_stride,
    key_scale_place_stride,
    key_scale_head_stride,
    value_page_stride,
    value_place_stride,
    value_head_stride,
    value_scale_page_stride,
    value_scale_place_stride,
    value_scale_head_stride,
    PAGE: tl.constexpr,
    K_WIDTH: tl.constexpr,
    K_BLOCK: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    HEADS: tl.constexpr,  # of them of the same token
    KEYS: tl.constexpr,  # read at a time
    SPLIT: tl.constexpr,
):
    """One tile of queries over one share of its keys: grid (tiles, kv heads * parts of a group, shares)."""
    tile = tl.program_id(0)
    if starts is None:
        sequence, first, stop = tile, tile, tile + 1
    else:
        sequence, first = tl.load(tile_sequences + tile), tl.load(tile_tokens + tile)
        stop = tl.load(starts + sequence + 1)
    parts = tl.cdiv(group, HEADS)
    kv_head = (tl.program_id(1) // parts).to(tl.int64)
    row = tl.arange(0, ROWS)
    token = first + row // HEADS
    of_group = (tl.program_id(1) % parts) * HEADS + row % HEADS
    real = (token < stop) & (of_group < group)
    context = tl.load(contexts + sequence).to(tl.int32)
    own = context - stop + token  # each row's position: the last key that it sees
    token = token.to(tl.int64)
    head = kv_head * group + of_group
    queries = query_rows(q, token, head, real, q_token_stride, q_head_stride, K_WIDTH, K_BLOCK)
    if q_inner is not None:
        inner = query_rows(q_inner, token, head, real, inner_token_stride, inner_head_stride, V_WIDTH, V_BLOCK)

    seen = tl.minimum(context, context - stop + first + ROWS // HEADS)  # keys that any row sees
    share = tl.cdiv(tl.cdiv(seen, tl.num_programs(2)), KEYS) * KEYS
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, seen)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, V_BLOCK], tl.float32)
    for start in range(begin, end, KEYS):
        position = start + tl.arange(0, KEYS)
        inside = position < end
        page = tl.load(tables + sequence.to(tl.int64) * table_stride + position // PAGE, mask=inside, other=0)
        page = page.to(tl.int64)
        k = stored(
            keys,
            key_scales,
            page,
            position % PAGE,
            kv_head,
            inside,
            key_page_stride,
            key_place_stride,
            key_head_stride,
            key_scale_page_stride,
            key_scale_place_stride,
            key_scale_head_stride,
            K_WIDTH,
            K_BLOCK,
            queries.dtype,
        )
        v = stored(
            values,
            value_scales,
            page,
            position % PAGE,
            kv_head,
            inside,
            value_page_stride,
            value_place_stride,
            value_head_stride,
            value_scale_page_stride,
            value_scale_place_stride,
            value_scale_head_stride,
            V_WIDTH,
            V_BLOCK,
            queries.dtype,
        )
        scores = product(queries, tl.trans(k))
        if q_inner is not None:
            scores += product(inner, tl.trans(v))
        visible = inside[None, :] & (position[None, :] <= own[:, None])
        scores = tl.where(visible, scores * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(scores - base[:, None])
        keep = tl.exp2(best - base)
        total = total * keep + tl.sum(weights, 1)
        mixed = mixed * keep[:, None] + product(weights.to(v.dtype), v)
        best = higher

    total = tl.where(total == 0.0, 1.0, total)  # a share without keys, whose best is -inf
    mixed = mixed / total[:, None]
    column = tl.arange(0, V_BLOCK)
    place = token * heads + head
    if SPLIT:
        place = place * tl.num_programs(2) + tl.program_id(2)
        tl.store(sums + place, best + tl.log2(total), mask=real)
        real = real & (best > float("-inf"))
    mask = real[:, None] & (column < V_WIDTH)[None, :]
    tl.store(out + place[:, None] * V_WIDTH + column[None, :], mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_shares(
    parts,  # [tokens, heads, shares, WIDTH], fp32; not written where the sum is -inf
    sums,  # [tokens, heads, shares]; those that are -inf come last
    out,  # [tokens, heads, WIDTH]
    shares,
    SHARES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The attention of one head of one token from its shares: grid (tokens * heads)."""
    place = tl.program_id(0).to(tl.int64)
    share, column = tl.arange(0, SHARES), tl.arange(0, BLOCK)
    each = tl.load(sums + place * shares + share, mask=share < shares, other=float("-inf"))
    best = tl.max(each, 0)
    total = tl.sum(tl.exp2(each - best), 0)
    mixed = tl.zeros([BLOCK], tl.float32)
    present = tl.sum((each > float("-inf")).to(tl.int32), 0)
    for one in range(present):  # pyright: ignore[reportArgumentType]
        weight = tl.exp2(tl.load(sums + place * shares + one) - best)
        start = parts + (place * shares + one) * WIDTH
        mixed += weight * tl.load(start + column, mask=column < WIDTH, other=0.0)
    tl.store(out + place * WIDTH + column, (mixed / total).to(out.dtype.element_ty), mask=column < WIDTH)
