"""Documents packed into one row: which document each token belongs to, and its position inside; no attention here."""

from collections.abc import Sequence

import torch
from torch import Tensor


def documents_of(ids: Tensor, ends: Sequence[int]) -> Tensor:
    """The number of each token's document within its row, from 0; a token of ``ends`` closes the one it stands in.

    Token ids and result are ``[batch, tokens]``.
    """
    closes = torch.isin(ids, torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)).long()
    return closes.cumsum(dim=-1) - closes


def positions_in_documents(documents: Tensor) -> Tensor:
    """Positions ``[batch, tokens]`` that start at 0 with every document of ``documents`` ``[batch, tokens]``."""
    places = torch.arange(documents.shape[-1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return places - (places * starts).cummax(dim=-1).values


def document_mask(documents: Tensor, past: int = 0) -> Tensor:
    """``[batch, 1, tokens - past, tokens]``: a token sees itself and what came before it in its own document."""
    places = torch.arange(documents.shape[-1], device=documents.device)
    causal = places[None, :] <= places[past:, None]
    same = documents[:, past:, None] == documents[:, None, :]
    return (causal & same)[:, None]
