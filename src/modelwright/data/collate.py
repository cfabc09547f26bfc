"""Documents to the tensors of one pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.data.documents import UNLEARNED, Document

Row = Sequence[Document]
"""The documents that share a row."""


def collate(rows: Sequence[Row], pad_id: int, packed: bool) -> dict[str, Tensor]:
    """The model's arguments for rows that are filled up on the right to the longest, as `StepBatch.micro` says.

    Args:
        packed: whether rows hold several documents, which do not see each other. The tail of a row is then one more
            document; otherwise ``attention_mask`` says where it is.
    """
    assert packed or all(len(row) == 1 for row in rows)
    longest = max(sum(map(len, row)) for row in rows)
    foreseen = any(not document.reads_last for row in rows for document in row)
    batch: dict[str, Any] = {
        "input_ids": _filled([_joined([one.ids[: len(one)] for one in row]) for row in rows], longest, pad_id),
        "labels": _filled([_joined([one.labels for one in row]) for row in rows], longest + foreseen, UNLEARNED),
    }
    lengths = [[len(document) for document in row] for row in rows]
    if packed:
        filled = [[*row, longest - sum(row)] for row in lengths]
        numbers = [np.repeat(np.arange(len(row)), row) for row in filled]
        batch["seq_idx"] = np.stack(numbers)
        batch["position_ids"] = np.stack([_joined([np.arange(length) for length in row]) for row in filled])
    elif any(sum(row) < longest for row in lengths):
        batch["attention_mask"] = _filled([np.ones(sum(row), np.int64) for row in lengths], longest, 0)
    batch |= _pictures(rows, longest)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}


def _pictures(rows: Sequence[Row], longest: int) -> dict[str, np.ndarray]:
    """Tiles, their places and grids, each row's documents one after the other; nothing where no row shows a picture."""
    shown = [[document for document in row if document.grids] for row in rows]
    if not any(shown):
        return {}
    tiles = [[document.tiles for document in row] for row in shown]
    some = next(each for row in tiles for each in row)
    assert some is not None
    images = np.zeros((len(rows), max(sum(map(len, row)) for row in tiles), *some.shape[1:]), np.float32)  # type: ignore[arg-type]
    grids = [[grid for document in row for grid in document.grids] for row in shown]
    crops = np.zeros((len(rows), max(map(len, grids)), 2), np.int64)
    for number, row in enumerate(shown):
        if row:
            own = np.concatenate([document.tiles for document in row if document.tiles is not None])
            images[number, : len(own)] = own
            crops[number, : len(grids[number])] = grids[number]
    masks = [
        _joined([np.zeros(len(one), bool) if one.picture_mask is None else one.picture_mask for one in row])
        for row in rows
    ]
    return {"images": images, "images_seq_mask": _filled(masks, longest, False), "images_spatial_crop": crops}


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)


def _filled(rows: Sequence[np.ndarray], length: int, value: Any) -> np.ndarray:
    """[rows, length], filled up on the right."""
    return np.stack([np.pad(row, (0, length - len(row)), constant_values=value) for row in rows])
