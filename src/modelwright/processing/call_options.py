"""What transformers' callers may say to a processor besides text and pictures, checked; nothing is computed here."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from modelwright.errors import RequestError

_FLATTENED = ("text_kwargs", "common_kwargs")
_OFF = {
    "images_kwargs": "how pictures are cut is said by the processor's settings",
    "videos_kwargs": "it reads no videos",
    "audio_kwargs": "it reads no sound",
    "videos": "it reads no videos",
    "audio": "it reads no sound",
    "text_pair": "a text has no second half",
    "text_target": "labels come with the text",
    "text_pair_target": "labels come with the text",
    "is_split_into_words": "text is not split into words",
    "stride": "nothing overflows",
    "return_token_type_ids": "the model has no token types",
    "return_mm_token_type_ids": "images_seq_mask says where pictures stand",
    "return_overflowing_tokens": "nothing overflows",
    "return_special_tokens_mask": "it makes none",
    "return_offsets_mapping": "it makes none",
    "return_length": "the output's seq_lens says it",
}
"""Arguments that transformers documents and this processor does not serve, unless they are off; and why."""
_LARGE = 10**9
"""Lengths from here on stand for none, as in tokenizers whose files say no ``model_max_length``."""


@dataclass(frozen=True)
class CallOptions:
    """How rows are cut, marked, padded and handed out; names and meanings are transformers' own.

    Attributes:
        padding: True or longest, max_length, or False: then rows that differ in length come as lists.
        padding_side: left or right; None for the tokenizer's.
        pad_to_multiple_of: lengths are multiples of it.
        truncation: whether a row is cut to max_length; None where that is meant by a max_length alone.
        max_length: tokens of a row; None for what the tokenizer says.
        add_special_tokens: whether a text begins with the mark for that, once.
        return_tensors: pt, np, or None for lists.
        return_attention_mask: whether the output says which tokens are no padding.
    """

    padding: bool | str | None = None
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    add_special_tokens: bool = True
    return_tensors: str | None = "pt"
    return_attention_mask: bool | None = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Check what a caller says.

        Raises:
            RequestError: an argument that is not known or not served, or a value that is none of those it may have.
        """
        flat: dict[str, Any] = {}
        for name, value in given.items():
            flat |= dict(value or {}) if name in _FLATTENED else {name: value}
        known = [field.name for field in fields(cls)]
        for name, value in flat.items():
            if name in _OFF and value:
                raise RequestError(f"the processor does not serve {name}: {_OFF[name]}")
            if name not in (*known, *_OFF, "verbose"):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise RequestError(f"the processor does not know the arguments {name}{hint}")
        return cls(**{name: getattr(value, "value", value) for name, value in flat.items() if name in known})

    def __post_init__(self) -> None:
        for name, allowed in (
            ("padding", (None, True, False, "longest", "max_length", "do_not_pad")),
            ("padding_side", (None, "left", "right")),
            ("truncation", (None, True, False, "longest_first", "only_first", "do_not_truncate")),
            ("return_tensors", (None, "pt", "np")),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(str(value) for value in allowed)
                raise RequestError(f"{name} must be one of {listed}; got {getattr(self, name)!r}", field=name)
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise RequestError(f"{name} must be a whole number of at least 1, got {value!r}", field=name)

    @property
    def pads(self) -> bool:
        """Whether rows become one length."""
        return self.padding not in (False, "do_not_pad")

    def padded_length(self, model_length: int) -> int:
        """The least length of padded rows, 0 for the longest of them, where the tokenizer says `model_length`."""
        if self.padding != "max_length":
            return 0
        length = self.max_length or model_length
        return length if length < _LARGE else 0

    def longest(self, model_length: int) -> int | None:
        """What rows are cut to, None where they are not, if the tokenizer says `model_length`."""
        cuts = self.truncation not in (None, False, "do_not_truncate")
        if self.truncation is None and self.padding is None:
            cuts = self.max_length is not None
        length = self.max_length or model_length
        return length if cuts and length < _LARGE else None
