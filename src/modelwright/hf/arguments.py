"""What a forward pass is handed: unknown arguments and unfit masks refused, positions counted when none are given."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelwright.errors import RequestError

# What callers pass to every model alike and has no meaning here: transformers before 5.18 hands each pass its
# cache_position, and many tokenizers return token_type_ids.
WITHOUT_MEANING = ("cache_position", "token_type_ids")


def refuse_unknown(extras: Mapping[str, Any], model: type) -> None:
    """Raise the ``TypeError`` of an unexpected keyword argument, with a suggestion; None says nothing and passes."""
    for name, value in extras.items():
        if name in WITHOUT_MEANING or value is None:
            continue
        known = list(inspect.signature(model.forward).parameters)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TypeError(f"{model.__name__}.forward() got an unexpected keyword argument {name!r}{hint}")


def refuse_attentions(config: Any, output_attentions: bool | None) -> None:
    """Raise a :class:`RequestError` where attention weights are asked for: no backend writes them out."""
    if config.output_attentions if output_attentions is None else output_attentions:
        raise RequestError("attention weights are never written out here: output_attentions must be False, not True")


def check_mask(mask: Tensor | None, batch: int, past: int, tokens: int) -> None:
    """Raise a :class:`RequestError` unless a 2-D mask covers every row and the past as well as the new tokens."""
    if mask is None or mask.dim() == 4:
        return
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < past + tokens:
        raise RequestError(
            f"attention_mask has shape {list(mask.shape)} and must have {[batch, past + tokens]}: "
            f"{batch} rows of {past} past and {tokens} new tokens"
        )


def positions_from_mask(mask: Tensor | None, batch: int, tokens: int, past: int, device: torch.device) -> Tensor:
    """``[batch, tokens]``: counted from the past, or over the real tokens of a 2-D padding mask (padding gets 1)."""
    if mask is None or mask.dim() != 2:
        return torch.arange(past, past + tokens, device=device).expand(batch, -1)
    counted = (mask.long().cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    return counted[:, past : past + tokens]
