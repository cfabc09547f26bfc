"""Which row of a batch a conversation, and a picture given beside it, belongs to; nothing is opened here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelwright.errors import RequestError
from modelwright.processing.arrays import is_array
from modelwright.processing.chat import Segment, count_open
from modelwright.processing.messages import count_mismatch

Pictures = Sequence[Any] | None


def split_rows(inputs: Any) -> list[Any]:
    """One row or several, as a list of rows."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], Mapping)):
        return [inputs]
    if not isinstance(inputs, Sequence) or not inputs:
        raise RequestError("there must be at least one conversation or prompt")
    return list(inputs)


def listed(images: Any) -> Pictures:
    """Pictures as a list of them, or of such lists: a picture alone is a list of one, a batch of arrays one of many."""
    if images is None or isinstance(images, list | tuple):
        return images
    return list(images) if is_array(images) and images.ndim == 4 else [images]


def pictures_per_row(images: Pictures, rows: int) -> Sequence[Pictures] | None:
    """``images`` as one entry a row, or None when it is a flat list of pictures."""
    if images is None:
        return [None] * rows
    if not any(isinstance(entry, list | tuple) for entry in images):
        return [images] if rows == 1 else None
    if len(images) != rows:
        raise RequestError(f"images holds {len(images)} lists of pictures for {rows} conversations")
    return list(images)


def deal_pictures(images: Sequence[Any], rows: list[tuple[Segment, ...]], image_token: str) -> list[Sequence[Any]]:
    """A flat list of pictures handed out to the open places of several rows, in order."""
    wanted = [count_open(row) for row in rows]
    if sum(wanted) != len(images):
        raise count_mismatch(f"{len(rows)} conversations", sum(wanted), len(images), image_token)
    ends = np.cumsum(wanted)
    return [images[end - count : end] for end, count in zip(ends, wanted, strict=True)]
