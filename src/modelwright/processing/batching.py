"""One processed prompt, and several of them padded into a batch; no tokenizer and no pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from modelwright.errors import RequestError

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
        sft_format: the official printout, which differs from the text in blanks before answers.
        begins: whether the first token is a beginning of sentence that the text did not bring.
    """

    text: str
    input_ids: np.ndarray
    labels: np.ndarray
    images_seq_mask: np.ndarray
    images: np.ndarray
    images_spatial_crop: np.ndarray
    num_image_tokens: tuple[int, ...]
    sft_format: str = ""
    begins: bool = False

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
    def target_ids(self) -> np.ndarray:
        """The labels by their official name."""
        return self.labels

    def __getitem__(self, name: str) -> Any:
        """A field by its name, as official code asks for it."""
        return getattr(self, name)

    @property
    def picture_tokens(self) -> int:
        """How many of the tokens stand for rows of pictures."""
        return sum(self.num_image_tokens)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Padding:
    """How rows become one length.

    Attributes:
        pad_id, ignore_id: what fills the ids, and the labels.
        side: left or right.
        length: at least so many tokens; 0 for the longest row.
        multiple: the length is a multiple of it.
    """

    pad_id: int
    ignore_id: int
    side: str = "left"
    length: int = 0
    multiple: int = 1

    def tokens(self, prompts: Sequence[ProcessedPrompt]) -> int:
        """The length of every row."""
        longest = max(self.length, *(len(prompt) for prompt in prompts))
        return -(-longest // self.multiple) * self.multiple


def pad_batch(prompts: Sequence[ProcessedPrompt], padding: Padding) -> dict[str, np.ndarray]:
    """Pad tokens to one length, tiles and crops with zeros at the end to the most.

    Returns:
        input_ids, labels int64 [B, T]; attention_mask, images_seq_mask bool [B, T]; images float32 [B, N, 3, S, S];
        images_spatial_crop int64 [B, M, 2].
    """
    tokens, side = padding.tokens(prompts), padding.side
    tiles = max(len(prompt.images) for prompt in prompts)
    pictures = max(len(prompt.images_spatial_crop) for prompt in prompts)
    return {
        "input_ids": np.stack([_pad(prompt.input_ids, tokens, padding.pad_id, side) for prompt in prompts]),
        "attention_mask": np.stack([_pad(np.ones(len(prompt), bool), tokens, False, side) for prompt in prompts]),
        "labels": np.stack([_pad(prompt.labels, tokens, padding.ignore_id, side) for prompt in prompts]),
        "images": np.stack([_fill(prompt.images, tiles) for prompt in prompts]),
        "images_seq_mask": np.stack([_pad(prompt.images_seq_mask, tokens, False, side) for prompt in prompts]),
        "images_spatial_crop": np.stack([_fill(prompt.images_spatial_crop, pictures) for prompt in prompts]),
    }


def cut(prompt: ProcessedPrompt, most: int, side: str = "right") -> ProcessedPrompt:
    """A prompt of at most ``most`` tokens: what is too much is left out on one side, a beginning of sentence never.

    Raises:
        RequestError: a token of a picture would be left out.
    """
    tokens = len(prompt)
    if tokens <= most:
        return prompt
    first = int(prompt.begins and side == "left" and most > 0)
    kept = np.r_[:first, tokens - (most - first) : tokens] if side == "left" else np.r_[:most]
    if prompt.images_seq_mask[kept].sum() != prompt.images_seq_mask.sum():
        raise RequestError(
            f"max_length ({most}) would cut a picture: the prompt has {tokens} tokens, of which pictures take "
            f"{prompt.picture_tokens}"
        )
    parts = ("input_ids", "labels", "images_seq_mask")
    return replace(prompt, **{name: getattr(prompt, name)[kept] for name in parts})


def _pad(row: np.ndarray, length: int, value: int, side: str) -> np.ndarray:
    missing = length - len(row)
    return np.pad(row, (missing, 0) if side == "left" else (0, missing), constant_values=value)


def _fill(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1))
