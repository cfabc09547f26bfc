"""Gated experts by Triton: tokens sorted by expert, and the launches; the arithmetic is in the programs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from modelwright.ops.backends.triton.load import programs, watchable

TYPES = (torch.float32, torch.bfloat16, torch.float16)
_FEW, _MANY = 16, 64
"""Rows of a tile: tl.dot takes no fewer than the first; the second reads a weight for more of them."""
_COLUMNS = 64
_DEPTH_BYTES = 128
_SUMMED = 256


@dataclass(frozen=True)
class Tiles:
    """Rows of one expert that a program takes together, reckoned without asking the device for a number.

    There are as many as any choice could need. ``order`` ``[choices]`` lists the choices by expert, ``ends``
    ``[experts]`` says where each one's stop; tile i begins at ``rows[i]`` of them and is of ``experts[i]``, which is
    the number of experts for one that is not needed.
    """

    order: Tensor
    ends: Tensor
    experts: Tensor
    rows: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int, size: int) -> "Tiles":
        """Tiles of up to ``size`` rows for the choices ``[tokens, top_k]``."""
        choices = chosen.flatten()
        counts = choices.new_zeros(experts).scatter_add(0, choices, torch.ones_like(choices))
        ends = counts.cumsum(0)
        last = ((counts + size - 1) // size).cumsum(0)  # [experts], where each one's tiles stop
        tile = torch.arange(min(len(choices), experts) + len(choices) // size, device=chosen.device)
        own = torch.searchsorted(last, tile, right=True)
        known = own.clamp(max=experts - 1)
        first = last - (counts + size - 1) // size
        rows = (ends - counts)[known] + (tile - first[known]) * size
        return cls(choices.argsort(stable=True), ends, own, rows)


@watchable
def experts(x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The gated feed-forward (SiLU) of each token's chosen experts, ``[tokens, dim]`` in and out.

    The rest is as for :func:`modelwright.ops.experts.looped_experts`, but hidden units are rounded once, to the type of
    ``x``, and so is what each expert says; the weighted sum is in fp32.

    Raises:
        ValueError: the widths of ``x`` and the weights differ.
    """
    dim, width = w_out.shape[1:]
    if x.shape[-1] != dim or w_in.shape[1:] != (2 * width, dim):
        raise ValueError(
            f"x ({x.shape[-1]}) must be as wide as w_out is long ({dim}), and w_in be [{2 * width}, {dim}], "
            f"got {list(w_in.shape[1:])}"
        )
    if len(x) == 0:
        return torch.empty_like(x)
    with torch.cuda.device_of(x):  # where Triton launches
        return _experts(x if x.stride(-1) == 1 else x.contiguous(), chosen, weights.float().contiguous(), w_in, w_out)


def _experts(x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    (number, dim, width), (tokens, top_k) = w_out.shape, chosen.shape
    rows = _FEW if tokens * top_k <= number * _FEW else _MANY
    tiles, program = Tiles.of(chosen, number, rows), programs("expert_programs")
    hidden, said = x.new_empty(tokens * top_k, width), x.new_empty(tokens * top_k, dim)
    blocks = {"ROWS": rows, "COLUMNS": _COLUMNS, "DEPTH": _DEPTH_BYTES // x.element_size()}
    where = tiles.experts, tiles.rows, tiles.ends, number, dim, width
    program.gate_and_up[(len(tiles.rows), -(-width // _COLUMNS))](
        *(x, tiles.order, w_in, hidden), *where, top_k, x.stride(0), *w_in.stride()[:2], **blocks
    )
    program.down[(len(tiles.rows), -(-dim // _COLUMNS))](
        *(hidden, tiles.order, w_out, said), *where, *w_out.stride()[:2], **blocks
    )
    out = x.new_empty(tokens, dim)
    program.weigh[(tokens, -(-dim // _SUMMED))](said, weights, out, dim, top_k, COLUMNS=_SUMMED)
    return out
