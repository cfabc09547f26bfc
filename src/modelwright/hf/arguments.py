"""What a forward pass is handed: unknown arguments and unfit masks refused, positions counted when none are given."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.errors import RequestError
from modelwright.hf.caches import Cache, cached_tokens, check_room, slots_of
from modelwright.hf.documents import DocumentMarks
from modelwright.ops.dispatch import numbers_are_known

# What callers pass to every model alike and has no meaning here: transformers before 5.18 hands each pass its
# cache_position, generate() the tokenizer that knows its stop_strings, and many tokenizers return token_type_ids.
WITHOUT_MEANING = ("cache_position", "token_type_ids", "tokenizer", "assistant_tokenizer")


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


@dataclass(frozen=True)
class PassInputs:
    """What says where the tokens of a pass stand and which keys they see.

    Attributes:
        batch, tokens: how many rows, and how many new tokens in each.
        device: where the tokens are.
        input_ids: ``[batch, tokens]``; None where embeddings came in their stead.
        mask: ``[batch, past + tokens]`` with 0 at padding, 4-D (see :class:`DenseAttention`), or None.
        cache: keys and values of earlier tokens, which the pass extends; None where there are none to be kept.
        past: how many tokens of each row are in the cache; see :func:`cached_tokens` for when it is a tensor.
        documents: ``[batch, tokens]``, the number of each token's document, where the caller packed several into a row.
    """

    batch: int
    tokens: int
    device: torch.device
    input_ids: Tensor | None = None
    mask: Tensor | None = None
    cache: Cache | None = None
    past: int | Tensor = 0
    documents: Tensor | None = None

    @classmethod
    def of(
        cls,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        marks: DocumentMarks | None = None,
    ) -> Self:
        """Check what a caller gives; without ``marks``, rows are not asked for documents.

        Raises:
            RequestError: not exactly one of ids and embeddings, a mask that does not cover them, marks of documents
                that do not, or a cache without room for them.
        """
        tokens = one_of(input_ids, inputs_embeds)
        batch, length = tokens.shape[:2]
        past = cached_tokens(cache)
        check_mask(mask, batch, past, length)
        check_room(cache, batch, past, length)
        documents = None if marks is None else marks.documents(batch, length, past, mask)
        return cls(batch, length, tokens.device, input_ids, mask, cache, past, documents)

    def positions(self) -> Tensor:
        """``[batch, tokens]``: counted from the past, padding included."""
        return self._places().expand(self.batch, -1)

    def unpadded_positions(self) -> Tensor:
        """``[batch, tokens]``: counted over the real tokens of a 2-D mask (padding gets 1), else from the past."""
        if self.mask is None or self.mask.dim() != 2:
            return self.positions()
        counted = (self.mask.long().cumsum(dim=-1) - 1).masked_fill(self.mask == 0, 1)
        return counted.index_select(1, self._places().to(counted.device))

    def over_past(self, real: Tensor) -> Tensor:
        """``real`` ``[batch, tokens]``, where new tokens are no padding, as a mask: all tokens of the past are real."""
        if isinstance(self.past, int):
            return F.pad(real, (self.past, 0), value=True)
        assert self.cache is not None
        every = real.new_ones(self.batch, slots_of(self.cache))
        return every.index_copy(1, self._places(), real)

    def _places(self) -> Tensor:
        """``[tokens]``: which tokens of their rows the new ones are."""
        return torch.arange(self.tokens, device=self.device) + self.past


def one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one that is given; a :class:`RequestError` unless it is exactly one, and of its type and dimensions."""
    if (input_ids is None) == (inputs_embeds is None):
        raise RequestError("give input_ids or inputs_embeds, and not both")
    if inputs_embeds is None:
        assert input_ids is not None
        _refuse_other_than("input_ids", input_ids, 2, "[batch, tokens]", "a tensor of whole numbers")
        if input_ids.dtype.is_floating_point or input_ids.dtype == torch.bool:
            raise RequestError(f"input_ids must be whole numbers (torch.int64 or torch.int32), got {input_ids.dtype}")
        return input_ids
    _refuse_other_than("inputs_embeds", inputs_embeds, 3, "[batch, tokens, dim]", "a tensor")
    return inputs_embeds


def check_range(name: str, values: Tensor, limit: int, limit_name: str) -> None:
    """Raise a :class:`RequestError` unless ``0 <= values < limit``; while a graph is made there are no values yet."""
    if not numbers_are_known(values) or values.numel() == 0:
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= limit:
        found = low if low < 0 else high
        raise RequestError(f"{name} must be at least 0 and below {limit_name} ({limit}), got {found}")


def check_tokens(input_ids: Tensor, config: Any) -> None:
    """Raise a :class:`RequestError` unless all of ``input_ids`` are of the config's vocabulary."""
    check_range("input_ids", input_ids, config.get_text_config().vocab_size, "vocab_size")


def rows_of_positions(position_ids: Tensor, batch: int, tokens: int) -> Tensor:
    """Positions as ``[batch, tokens]`` or ``[1, tokens]``; a :class:`RequestError` for any other shape."""
    rows = position_ids[None] if position_ids.dim() == 1 else position_ids
    if rows.dim() != 2 or rows.shape[0] not in (1, batch) or rows.shape[1] != tokens:
        raise RequestError(
            f"position_ids has shape {list(position_ids.shape)} and must have {[batch, tokens]} or {[1, tokens]}: a "
            "position for each new token"
        )
    return rows


def check_mask(mask: Tensor | None, batch: int, past: int | Tensor, tokens: int) -> None:
    """Raise a :class:`RequestError` unless a mask covers every row and the past as well as the new tokens.

    A past whose length nobody knows yet is taken to be covered.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise RequestError(f"attention_mask must be a tensor or None, got {type(mask).__name__}")
    keys = tokens + (past if isinstance(past, int) else 0)
    if mask.dim() == 4:
        return _check_whole_rule(mask, batch, tokens, keys)
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < keys:
        raise RequestError(
            f"attention_mask has shape {list(mask.shape)} and must have {[batch, keys]}: "
            f"{batch} rows of {keys - tokens} past and {tokens} new tokens"
        )


def _check_whole_rule(mask: Tensor, batch: int, tokens: int, keys: int) -> None:
    """Raise a :class:`RequestError` unless a 4-D mask is of a type that says what it means, and covers the ``keys``."""
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise RequestError(
            "an attention_mask of 4 dimensions must be torch.bool (True where a query may look) or floating (added to "
            f"the scores), got {mask.dtype}: .bool() makes one of zeros and ones"
        )
    rows, _, queries, width = mask.shape
    if rows not in (1, batch) or queries not in (1, tokens) or (width != 1 and width < keys):
        raise RequestError(
            f"attention_mask has shape {list(mask.shape)} and must have {[batch, 1, tokens, keys]}, or 1 in place of "
            f"any: {batch} rows of {keys - tokens} past and {tokens} new tokens"
        )


def _refuse_other_than(name: str, given: object, dimensions: int, shape: str, kind: str) -> None:
    if not isinstance(given, Tensor):
        raise RequestError(f"{name} must be {kind}, {shape}, got {type(given).__name__}")
    if given.dim() != dimensions:
        raise RequestError(f"{name} must have the shape {shape}, got {list(given.shape)}")
