"""Attention over pages by Triton: the checks, the sizes of tiles and the launches; the arithmetic is in the programs.

Tiles are chosen by rule, not by trials, so that a first request waits for one compilation and a graph can be captured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from modelwright.ops.backends.triton.load import programs, watchable
from modelwright.ops.pages import Pages

QUERIES = (torch.float32, torch.bfloat16, torch.float16)
STORED = (*QUERIES, torch.int8)
_LEAST = 16
"""tl.dot takes no smaller side."""
_TILE_BYTES = 40 * 1024
"""Of the keys and values read at a time; two such fit in the shared memory of any GPU since 2020."""
_PROGRAMS_PER_PROCESSOR = 2
_KEYS_PER_SHARE = 128
"""Fewer are not worth a program of their own."""


@dataclass(frozen=True)
class Tiles:
    """Which sequence each tile of queries is of, and where in the row it begins: int32 ``[tiles]`` each."""

    starts: Tensor
    sequences: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, starts: Sequence[int], size: int, device: torch.device) -> "Tiles":
        """Tiles of up to ``size`` tokens that cover every sequence."""
        pairs = [
            (sequence, token)
            for sequence, (start, stop) in enumerate(pairwise(starts))
            for token in range(start, stop, size)
        ]
        sequences, tokens = torch.tensor(pairs, dtype=torch.int32).view(-1, 2).to(device).unbind(1)
        return cls(
            torch.tensor(list(starts), dtype=torch.int32).to(device), sequences.contiguous(), tokens.contiguous()
        )


@dataclass(frozen=True)
class Shape:
    """How much a program takes: ``rows`` of a tile, ``heads`` of them of one token, and ``keys`` at a time."""

    rows: int
    heads: int
    keys: int
    k_block: int
    v_block: int

    @classmethod
    def of(cls, tokens: int, group: int, k_width: int, v_width: int, itemsize: int) -> "Shape":
        """For up to ``tokens`` of a sequence, ``group`` heads that share keys, and queries of ``itemsize`` bytes.

        Wide tiles of few tokens are kept low, for a row of sums is as wide as the values and lives in registers.
        """
        k_block, v_block = (max(_LEAST, _power_of_two(width)) for width in (k_width, v_width))
        most = 64 if v_block <= 128 else 32 if v_block <= 256 else _LEAST
        heads = min(_power_of_two(group), most)
        rows = min(max(_LEAST, heads * _power_of_two(tokens)), most)
        keys = _TILE_BYTES // ((k_block + v_block) * itemsize)
        return cls(rows, heads, min(64, max(_LEAST, _power_of_two(keys + 1) // 2)), k_block, v_block)

    @property
    def tokens(self) -> int:
        """Of a tile."""
        return self.rows // self.heads

    def constants(self, keys: Pages, values: Pages) -> dict[str, int]:
        """What the program is compiled for."""
        return {
            "PAGE": values.page_size,
            "K_WIDTH": keys.width,
            "K_BLOCK": self.k_block,
            "V_WIDTH": values.width,
            "V_BLOCK": self.v_block,
            "ROWS": self.rows,
            "HEADS": self.heads,
            "KEYS": self.keys,
        }


@watchable
def decode(
    q: Tensor, keys: Pages, values: Pages, contexts: Tensor, tables: Tensor, scale: float, q_inner: Tensor | None = None
) -> Tensor:
    """One query per sequence: ``[sequences, heads, k_dim]`` -> ``[sequences, heads, v_dim]``.

    The numbers of ``contexts`` ``[sequences]`` and ``tables`` ``[sequences, pages at most]`` are never waited for: the
    pages a table has room for say how many programs share a sequence's keys.

    Args:
        q_inner: for latent pages, queries ``[sequences, heads, rank]`` to be multiplied with the values as well; then
            ``q`` are the rotated queries and ``keys`` the rotated keys.

    Raises:
        ValueError: the widths of queries and keys differ.
    """
    with torch.cuda.device_of(q):  # where Triton launches
        return _attend(q, q_inner, keys, values, contexts, tables, None, scale)


@watchable
def ragged(
    q: Tensor,
    keys: Pages,
    values: Pages,
    starts: Sequence[int],
    contexts: Sequence[int],
    tables: Tensor,
    scale: float,
    q_inner: Tensor | None = None,
) -> Tensor:
    """Any number of queries per sequence, packed as ``ops/paged.py`` says; otherwise as :func:`decode`."""
    ends = torch.tensor(list(contexts), dtype=torch.int32).to(q.device)
    with torch.cuda.device_of(q):
        return _attend(q, q_inner, keys, values, ends, tables, starts, scale)


def _attend(
    q: Tensor,
    q_inner: Tensor | None,
    keys: Pages,
    values: Pages,
    contexts: Tensor,
    tables: Tensor,
    starts: Sequence[int] | None,
    scale: float,
) -> Tensor:
    """Without ``starts`` each sequence has one query."""
    q, q_inner = _queries(q, keys), None if q_inner is None else _queries(q_inner, values)
    (tokens, heads), program = q.shape[:2], programs("attention_programs")
    out = q.new_empty(tokens, heads, values.width)
    if tokens == 0:
        return out
    kv_heads = keys.rows.shape[2] if keys.rows.dim() == 4 else 1
    group = heads // kv_heads
    longest = 1 if starts is None else max(stop - start for start, stop in pairwise(starts))
    shape = Shape.of(longest, group, keys.width, values.width, q.element_size())
    tiles = None if starts is None else Tiles.of(starts, shape.tokens, q.device)
    row = (tokens if tiles is None else len(tiles.tokens)), kv_heads * -(-group // shape.heads)
    shares = _shares(row[0] * row[1], tables.shape[1] * values.page_size, q.device)
    parts, sums = out, None
    if shares > 1:
        parts = q.new_empty(tokens, heads, shares, values.width, dtype=torch.float32)
        sums = q.new_empty(tokens, heads, shares, dtype=torch.float32)
    program.attend[(*row, shares)](
        *(q, q_inner, keys.rows, keys.scales, values.rows, values.scales, contexts, tables),
        *((None, None, None) if tiles is None else (tiles.starts, tiles.sequences, tiles.tokens)),
        *(parts, sums, scale * math.log2(math.e), heads, group, tables.stride(0)),
        *(*q.stride()[:2], *((0, 0) if q_inner is None else q_inner.stride()[:2])),
        *(*_strides(keys), *_strides(values)),
        **shape.constants(keys, values),
        SPLIT=shares > 1,
        num_stages=2,
    )
    if shares > 1:
        blocks = {"SHARES": _power_of_two(shares), "WIDTH": values.width, "BLOCK": shape.v_block}
        program.add_shares[(tokens * heads,)](parts, sums, out, shares, **blocks)
    return out


def _queries(q: Tensor, pages: Pages) -> Tensor:
    """Queries whose numbers lie side by side; pointers carry no sizes, so that what does not fit is refused before."""
    if q.shape[-1] != pages.width:
        raise ValueError(f"the width of the queries ({q.shape[-1]}) must be that of the keys ({pages.width})")
    if pages.rows.stride(-1) != 1:
        raise ValueError(
            f"the numbers of a stored vector must lie side by side, got a stride of {pages.rows.stride(-1)}"
        )
    return q if q.stride(-1) == 1 else q.contiguous()


def _shares(row: int, keys: int, device: torch.device) -> int:
    """Among how many programs each tile's keys are shared out: as many as leave no processor idle."""
    wanted = _PROGRAMS_PER_PROCESSOR * _processors(device) // row
    return max(1, min(wanted, keys // _KEYS_PER_SHARE))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _LEAST


def _strides(pages: Pages) -> tuple[int, ...]:
    """Of page, place and head of the rows and of their scales, 0 where there are none."""
    scales = () if pages.scales is None else pages.scales.stride()
    return *(*pages.rows.stride()[:-1], 0)[:3], *(*scales, 0, 0, 0)[:3]


def _power_of_two(number: int) -> int:
    """The least that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()
