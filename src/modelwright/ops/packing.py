"""Documents packed into one row: which document each token belongs to, its position inside, and where documents lie.

Documents are told apart by numbers ``[batch, tokens]``: neighbours of one number in one row are one document, whatever
the mark was that gave it. No attention here.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from modelwright.ops.dispatch import numbers_are_known


def documents_of(ids: Tensor, ends: Sequence[int]) -> Tensor:
    """The number of each token's document within its row, from 0; a token of ``ends`` closes the one it stands in.

    Token ids and result are ``[batch, tokens]``.
    """
    closes = torch.isin(ids, torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)).long()
    return closes.cumsum(dim=-1) - closes


def documents_of_positions(positions: Tensor, jumps: bool = True) -> Tensor | None:
    """The number of each token's document by positions ``[batch, tokens]``; None where every row is one document.

    A document starts where a position does not follow the one before it by one, as in transformers, or without
    ``jumps`` only where it also is the row's first position again. While a graph is made the numbers are not known
    yet: documents then are always told apart.
    """
    starts = _after_the_first(positions != positions.roll(1, dims=-1) + 1)
    if not jumps:
        starts = starts & (positions == positions[:, :1])
    if numbers_are_known(starts) and not bool(starts.any()):
        return None
    return starts.long().cumsum(dim=-1)


def documents_of_bounds(bounds: Tensor, batch: int, tokens: int) -> Tensor:
    """The number of each token's document, ``[batch, tokens]``, from where documents begin and end.

    ``bounds`` ``[documents + 1]`` rises from 0 to ``batch * tokens``, counted over the rows one after the other, as the
    ``cu_seq_lens`` of kernels for sequences of many lengths do.
    """
    places = torch.arange(batch * tokens, device=bounds.device, dtype=bounds.dtype)
    return torch.searchsorted(bounds[1:].contiguous(), places, right=True).view(batch, tokens)


def document_spans(documents: Tensor) -> list[list[tuple[int, int]]]:
    """Each row's documents as ``(start, stop)`` of its tokens, in order; reads the numbers."""
    tokens = documents.shape[1]
    changes = (documents[:, 1:] != documents[:, :-1]).tolist()
    rows = [[0, *(place for place, new in enumerate(row, 1) if new), tokens] for row in changes]
    return [list(pairwise(row)) for row in rows]


def positions_in_documents(documents: Tensor) -> Tensor:
    """Positions ``[batch, tokens]`` that start at 0 with every document of ``documents`` ``[batch, tokens]``."""
    places = torch.arange(documents.shape[-1], device=documents.device).expand_as(documents)
    starts = _after_the_first(documents != documents.roll(1, dims=-1))  # the first starts at 0 anyway
    return places - (places * starts).cummax(dim=-1).values


def _after_the_first(rolled: Tensor) -> Tensor:
    """What was compared with the token before, False for a row's first, which was compared with its last.

    No tensor is a token shorter than the row: a graph for any length from 2 on would be made for 3 and more alone.
    """
    return rolled & (torch.arange(rolled.shape[-1], device=rolled.device) > 0)


def document_mask(documents: Tensor, past: int = 0) -> Tensor:
    """``[batch, 1, tokens - past, tokens]``: a token sees itself and what came before it in its own document."""
    places = torch.arange(documents.shape[-1], device=documents.device)
    causal = places[None, :] <= places[past:, None]
    same = documents[:, past:, None] == documents[:, None, :]
    return (causal & same)[:, None]
