"""Model FLOPs of the steps that a run takes, counted from what each batch holds; padding counts as nothing."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from modelwright.planner.counts import Counts
from modelwright.planner.training_flops import PARTS, training_flops

UNLEARNED = -100
_PLANNED = {"dense": "dense_ffn", "experts": "routed_experts", "shared": "shared_experts", "gate": "router"}
"""The planner's names of parts that the families' records call otherwise."""
_SEEN = {"vision", "projector"}


class StepFlops:
    """FLOPs of a step's documents and tiles, forward and backward.

    Args:
        counts: the model's sizes.
        parts: rows of the table of parts (``part``, ``trainable``, ``total``); none of them for a model trained whole.
            A part of which some numbers train and others do not is one with LoRA beside it.
    """

    def __init__(self, counts: Counts, parts: Sequence[Mapping[str, Any]] = ()):
        rows: list[tuple[str, int, int]] = []
        for row in parts:
            name = str(row["part"])
            rows.append((_PLANNED.get(name, name), int(row["trainable"]), int(row["total"])))
        whole = {part for part, trainable, total in rows if trainable == total}
        self._counts = counts
        self._trained = PARTS if not rows or "model" in whole else frozenset(whole & PARTS)
        partly = {part: trainable for part, trainable, _ in rows if trainable and part not in whole}
        self._adapted = {part: trainable for part, trainable in partly.items() if part in PARTS - _SEEN}
        self._of_length: dict[int, int] = {}
        self._of_tile: int | None = None
        self._of_label = training_flops(counts, 0, trained=self._trained, adapted=self._adapted, learned=1).head

    def __call__(self, batch: Any) -> int:
        """Of a `StepBatch`, whose arrays lie on the CPU; logits are computed where a label counts."""
        total = batch.counted * self._of_label
        for micro in batch.micro:
            lengths, tiles = list(document_lengths(micro)), tiles_of(micro)
            total += sum(self._document(length, bool(tiles)) for length in lengths) + tiles * self._tile
        return total

    def _document(self, length: int, sees: bool) -> int:
        key = length if sees else -length
        if key not in self._of_length:
            found = training_flops(
                self._counts, length, int(sees), trained=self._trained, adapted=self._adapted, learned=0
            )
            self._of_length[key] = found.total - found.vision - found.projector
        return self._of_length[key]

    @property
    def _tile(self) -> int:
        if self._of_tile is None:
            found = training_flops(self._counts, 0, 1, trained=self._trained)
            self._of_tile = found.vision + found.projector
        return self._of_tile


def document_lengths(micro: Mapping[str, Any]) -> Iterator[int]:
    """The tokens of each document of a pass; the tail of a packed row, which teaches nothing, is none."""
    ids, labels = np.asarray(micro["input_ids"]), np.asarray(micro["labels"])
    numbers, mask = micro.get("seq_idx"), micro.get("attention_mask")
    if numbers is None:
        padded = (
            mask is not None and np.ndim(mask) == 2
        )  # a mask of four dimensions says of no token that it is padding
        yield from (int(n) for n in np.asarray(mask).sum(axis=1)) if padded else [ids.shape[1]] * len(ids)
        return
    for row, learned in zip(np.asarray(numbers), labels, strict=True):
        starts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        spans = list(pairwise(starts))
        last = spans[-1]
        if len(spans) > 1 and (learned[last[0] : last[1]] == UNLEARNED).all():
            spans.pop()
        yield from (int(end - start) for start, end in spans)


def tiles_of(micro: Mapping[str, Any]) -> int:
    """The tiles of a pass: of each picture the local ones and the global view."""
    crops = micro.get("images_spatial_crop")
    if crops is None or micro.get("images") is None:
        return 0
    grids = np.asarray(crops).reshape(-1, 2)
    return int(sum(columns * rows + 1 for columns, rows in grids if columns * rows))
