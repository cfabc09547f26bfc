"""Positions of tokens when none are given."""

import torch
from torch import Tensor


def positions_from_mask(mask: Tensor | None, batch: int, tokens: int, past: int, device: torch.device) -> Tensor:
    """``[batch, tokens]``: counted from the past, or over the real tokens of a 2-D padding mask (padding gets 1)."""
    if mask is None or mask.dim() != 2:
        return torch.arange(past, past + tokens, device=device).expand(batch, -1)
    counted = (mask.long().cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    return counted[:, past : past + tokens] if mask.shape[1] >= past + tokens else counted[:, -tokens:]
