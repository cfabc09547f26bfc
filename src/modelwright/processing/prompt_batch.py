"""Processed prompts as the batch that models, transformers' callers and official code take."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from transformers import BatchFeature

from modelwright.errors import RequestError
from modelwright.processing.batching import Padding, ProcessedPrompt, cut, pad_batch
from modelwright.processing.call_options import CallOptions

_OF_TOKENS = ("input_ids", "attention_mask", "labels", "images_seq_mask", "images_spatial_crop")


class PromptBatch(BatchFeature):
    """A batch whose keys are what a model reads.

    Official code finds ``sft_format`` (a list of texts), ``seq_lens`` (tokens of each row) and ``target_ids`` (the
    labels) in it, too; they are no keys, so that ``model(**batch)`` is not handed them.
    """

    def __init__(self, data: dict[str, Any] | None = None, tensor_type: str | None = None, **aside: Any):
        self.aside = aside
        super().__init__(data, tensor_type=tensor_type)

    def __getitem__(self, item: str) -> Any:
        if item == "target_ids":
            item = "labels"
        aside = self.__dict__.get("aside", {})
        return aside[item] if item in aside else super().__getitem__(item)

    def __getattr__(self, item: str) -> Any:
        if "data" in self.__dict__ and not item.startswith("__"):  # neither while a copy is made
            with suppress(KeyError):
                return self[item]
        raise AttributeError(f"a batch has no {item!r}")

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"aside": self.aside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.aside = state["aside"]
        super().__setstate__(state)


def make_batch(prompts: Sequence[ProcessedPrompt], how: CallOptions, *, tokenizer: Any, ignore_id: int) -> PromptBatch:
    """Cut and pad prompts as `how` says, with the tokenizer's padding.

    Returns:
        The fields and shapes of `pad_batch`; where rows are not padded, a list with a row each.

    Raises:
        RequestError: a picture would be cut, or rows of different lengths are to become a tensor.
    """
    most = how.longest(tokenizer.model_max_length)
    rows = [prompt if most is None else cut(prompt, most, tokenizer.truncation_side) for prompt in prompts]
    lengths = [len(row) for row in rows]
    side = how.padding_side or tokenizer.padding_side
    padding = Padding(tokenizer.pad_token_id, ignore_id, side)
    if how.pads:
        length = how.padded_length(tokenizer.model_max_length)
        padding = Padding(tokenizer.pad_token_id, ignore_id, side, length, how.pad_to_multiple_of or 1)
    elif how.return_tensors is not None and len(set(lengths)) > 1:
        raise RequestError(f"padding is off, and rows of {lengths} tokens make no tensor: give return_tensors=None")
    fields: dict[str, Any]
    if how.pads or how.return_tensors is not None:
        fields = dict(pad_batch(rows, padding))
    else:
        alone = [pad_batch([row], padding) for row in rows]
        fields = {name: [one[name][0] for one in alone] for name in alone[0]}
    if not how.return_attention_mask:
        del fields["attention_mask"]
    if how.return_tensors is None:
        fields |= {name: [row.tolist() for row in fields[name]] for name in _OF_TOKENS if name in fields}
    return PromptBatch(fields, how.return_tensors, sft_format=[row.sft_format for row in rows], seq_lens=lengths)
