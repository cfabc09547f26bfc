"""One processed prompt, and several of them padded on the left into a batch; no tokenizer and no pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

UNLEARNT = -100
"""The label of a token that is not learnt, torch's ``ignore_index``."""


@dataclass(frozen=True)
class ProcessedPrompt:
    """One conversation as the model reads it: T tokens, N tiles, M pictures. The engine takes it as it is.

    Attributes:
        text: what the tokens print, with one image token for each picture.
        input_ids: int64 [T].
        labels: int64 [T]; ``ignore_id`` where nothing is to be learnt.
        images_seq_mask: bool [T]; true where a tile's features replace the token.
        images: float32 [N, 3, S, S]; a processor gives one blank tile when there is no picture.
        images_spatial_crop: int64 [M, 2], (columns, rows) of each picture's local tiles; [[0, 0]] when there is none.
        num_image_tokens: for each picture, the tokens it takes.
    """

    text: str
    input_ids: np.ndarray
    labels: np.ndarray
    images_seq_mask: np.ndarray
    images: np.ndarray
    images_spatial_crop: np.ndarray
    num_image_tokens: tuple[int, ...]

    @classmethod
    def of_tokens(cls, ids: Sequence[int], text: str = "") -> Self:
        """Text alone as its token ids, all of which are read: none of them is padding, and nothing is to be learnt."""
        return cls(
            text=text,
            input_ids=np.array(ids, np.int64),
            labels=np.full(len(ids), UNLEARNT, np.int64),
            images_seq_mask=np.zeros(len(ids), bool),
            images=np.zeros((0, 3, 1, 1), np.float32),
            images_spatial_crop=np.zeros((1, 2), np.int64),
            num_image_tokens=(),
        )

    @property
    def picture_tokens(self) -> int:
        """How many of the tokens stand for rows of pictures."""
        return sum(self.num_image_tokens)

    def __len__(self) -> int:
        return len(self.input_ids)


def pad_batch(prompts: Sequence[ProcessedPrompt], *, pad_id: int, ignore_id: int) -> dict[str, np.ndarray]:
    """Pad tokens on the left to the longest prompt, tiles and crops with zeros at the end to the most.

    Returns:
        input_ids, labels int64 [B, T]; attention_mask, images_seq_mask bool [B, T]; images float32 [B, N, 3, S, S];
        images_spatial_crop int64 [B, M, 2].
    """
    tokens = max(len(prompt) for prompt in prompts)
    tiles = max(len(prompt.images) for prompt in prompts)
    pictures = max(len(prompt.images_spatial_crop) for prompt in prompts)
    return {
        "input_ids": np.stack([_left(prompt.input_ids, tokens, pad_id) for prompt in prompts]),
        "attention_mask": np.stack([_left(np.ones(len(prompt), bool), tokens, False) for prompt in prompts]),
        "labels": np.stack([_left(prompt.labels, tokens, ignore_id) for prompt in prompts]),
        "images": np.stack([_right(prompt.images, tiles) for prompt in prompts]),
        "images_seq_mask": np.stack([_left(prompt.images_seq_mask, tokens, False) for prompt in prompts]),
        "images_spatial_crop": np.stack([_right(prompt.images_spatial_crop, pictures) for prompt in prompts]),
    }


def _left(row: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(row, (length - len(row), 0), constant_values=value)


def _right(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1))
