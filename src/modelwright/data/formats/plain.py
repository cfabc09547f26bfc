"""Rows that are no conversation: words, tokens, and pictures whose pixels are learned."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from modelwright.data.examples import Content, Picture, PictureRef, Text, Tokens
from modelwright.data.formats.fields import (
    MEDIA,
    PICTURES,
    broken,
    first_given,
    mapping_of,
    nothing_beside,
    required,
    shown,
)
from modelwright.data.formats.fields import words as words_of
from modelwright.data.formats.pictures import PictureFolder
from modelwright.data.rows import Row

IGNORED = -100
"""The label of a token that is not learned."""
_LEARNED = ("completion_mask", "assistant_masks", "loss_mask")
"""What else says which tokens are learned, by 1 for each that is: all of them must, as in TRL."""
_WEIGHED = ("loss_scale", "loss_weights", "weights")
_SEVERAL = ("seq_lengths", "cu_seqlens", "cu_seq_lens_q", "seq_idx")
"""What says where the documents of a packed row begin."""


TOKENS = ("input_ids", "labels", "attention_mask", "position_ids", *_LEARNED, *_SEVERAL, *_WEIGHED)
"""What is read of a row of tokens, or refused."""


def read_text(row: Row, folder: PictureFolder) -> Content:
    """``text``, or words without a name."""
    if isinstance(row.value, Mapping):
        nothing_beside(row, "text alone", (*PICTURES, *MEDIA))
    words = row.value if isinstance(row.value, str) else words_of(row, "text", required(row, "text"))
    if not words:
        raise broken(row, "its text is empty")
    return Text(words)


def read_tokens(row: Row, folder: PictureFolder) -> Content:
    """``input_ids``, and ``labels`` where they differ; tokens that an ``attention_mask`` hides are left out.

    What other masks leave out is not learned.
    """
    values = {"input_ids": row.value} if isinstance(row.value, np.ndarray) else mapping_of(row)
    if values is row.value:
        nothing_beside(row, "tokens", (*PICTURES, *MEDIA))
        _refuse_packed(row, values)
        weighed = first_given(row, _WEIGHED)
        if weighed is not None:
            raise broken(row, f"it has {weighed!r}, and a token is learned or not: say so by a loss_mask of 0 and 1")
    ids = _whole(row, "input_ids", values["input_ids"] if "input_ids" in values else required(row, "input_ids"))
    if not len(ids):
        raise broken(row, "its input_ids are empty")
    if ids.min() < 0:
        raise broken(row, f"input_ids must be at least 0, got {ids.min()}")
    beside = {
        name: _whole(row, name, values[name])
        for name in ("labels", "attention_mask", *_LEARNED)
        if values.get(name) is not None
    }
    for name, others in beside.items():
        if len(others) != len(ids):
            raise broken(row, f"it has {len(ids)} input_ids and {len(others)} {name}: there must be one for each")
    labels, mask = beside.get("labels"), beside.get("attention_mask")
    if labels is not None and ((labels < 0) & (labels != IGNORED)).any():
        wrong = labels[(labels < 0) & (labels != IGNORED)][0]
        raise broken(row, f"labels must be tokens or {IGNORED}, got {wrong}")
    for name in _LEARNED:
        if name in beside:
            labels = np.where(beside[name] != 0, ids if labels is None else labels, IGNORED)
    if mask is None:
        return Tokens(ids, labels)
    shows = mask != 0
    if not shows.any():
        raise broken(row, "its attention_mask hides every token")
    return Tokens(ids[shows], None if labels is None else labels[shows])


def read_picture(row: Row, folder: PictureFolder) -> Content:
    """``image``, or a picture without a name."""
    if isinstance(row.value, PictureRef):
        return Picture(row.value)
    return Picture(folder.find(row, required(row, "image")))


def _refuse_packed(row: Row, values: Mapping[str, Any]) -> None:
    """A row of tokens is one document, and would otherwise be learned as one."""
    packed = next((name for name in _SEVERAL if values.get(name) is not None), None)
    places = values.get("position_ids")
    if packed is None and isinstance(places, list | np.ndarray) and list(places) != [*range(len(places))]:
        packed = "position_ids"
    if packed is not None:
        raise broken(row, f"its {packed} say that it is packed: give each document a row, which `data.pack` packs")


def _whole(row: Row, name: str, value: Any) -> np.ndarray:
    """int64 [n] of a list of whole numbers."""
    given = value if isinstance(value, np.ndarray) else None
    if isinstance(value, list) and all(type(number) is int for number in value):
        with suppress(OverflowError):
            given = np.array(value, np.int64)
    if given is None or given.ndim != 1 or given.dtype.kind not in "iu":
        raise broken(row, f"{name} must be a list of whole numbers, got {shown(value)}")
    return given.astype(np.int64)
