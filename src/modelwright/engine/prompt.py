"""`Prompt`, a request's tokens and pictures as the engine keeps them, made from what a processor gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from modelwright.configs import CheckedConfig, DeepseekVLV2Config
from modelwright.engine.prefix import Key
from modelwright.errors import RequestError


@dataclass(frozen=True)
class PromptPicture:
    """One picture of a prompt.

    Attributes:
        key: the hash of its pixels and of how its tiles lie.
        tiles: ``[1 + width * height, 3, S, S]``.
        crop: ``(width, height)``, the local tiles.
        places: where in the prompt its rows go, one after the other.
    """

    key: bytes
    tiles: Tensor
    crop: tuple[int, int]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the pictures whose rows replace some of them."""

    tokens: tuple[int, ...]
    pictures: tuple[PromptPicture, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The content of each place, by which pages are found again: ids, and rows of pictures by their pixels."""
        keys: list[Key] = list(self.tokens)
        for picture in self.pictures:
            for row, place in enumerate(picture.places):
                keys[place] = (picture.key, row)
        return tuple(keys)


def read_prompt(given: Any, tokenizer: Any, config: CheckedConfig) -> Prompt:
    """A prompt from text, from token ids, or from the batch of one row that a processor makes.

    Raises:
        RequestError: text without a tokenizer, several rows, pictures for a model that sees none, or places and rows of
            pictures that differ in number.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        if tokenizer is None:
            raise RequestError("a prompt as text needs a tokenizer, and the engine has none")
        return Prompt(tuple(tokenizer.encode(given)))
    if not isinstance(given, Mapping):
        return Prompt(_ids(given))
    return _from_batch(given, config)


def _ids(given: Any) -> tuple[int, ...]:
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
        raise RequestError(f"a prompt must be text, token ids or a processor's output, got {type(given).__name__}")
    return tuple(values)


def _from_batch(batch: Mapping[str, Any], config: CheckedConfig) -> Prompt:
    if "input_ids" not in batch:
        raise RequestError(f"a processor's output must hold input_ids, got {', '.join(batch) or 'nothing'}")
    parts = {name: torch.as_tensor(value) for name, value in batch.items() if value is not None}
    ids = parts["input_ids"]
    if ids.dim() != 2 or len(ids) != 1:
        raise RequestError(f"input_ids of one prompt must be [1, tokens], got {list(ids.shape)}")
    real = parts["attention_mask"][0].bool() if "attention_mask" in parts else torch.ones_like(ids[0], dtype=torch.bool)
    tokens = tuple(ids[0][real].tolist())
    crops = [(w, h) for w, h in parts["images_spatial_crop"][0].tolist() if w and h] if _has_pictures(parts) else []
    if not crops:
        return Prompt(tokens)
    if not isinstance(config, DeepseekVLV2Config):
        raise RequestError(f"a {config.model_type} model reads text only, and the prompt holds {len(crops)} pictures")
    places = parts["images_seq_mask"][0][real].bool().nonzero()[:, 0].tolist()
    return Prompt(tokens, tuple(_pictures(parts["images"][0], crops, places, config)))


def _has_pictures(parts: Mapping[str, Tensor]) -> bool:
    return all(name in parts for name in ("images", "images_seq_mask", "images_spatial_crop"))


def _pictures(
    tiles: Tensor, crops: list[tuple[int, int]], places: list[int], config: DeepseekVLV2Config
) -> list[PromptPicture]:
    counts = [config.picture_tokens(crop) for crop in crops]
    if sum(counts) != len(places):
        raise RequestError(f"the prompt has {len(places)} image places and its pictures have {sum(counts)} rows")
    pictures, tile, place = [], 0, 0
    for crop, count in zip(crops, counts, strict=True):
        own = tiles[tile : tile + 1 + crop[0] * crop[1]].contiguous()
        key = sha256(repr(crop).encode() + own.view(torch.uint8).numpy().tobytes()).digest()
        pictures.append(PromptPicture(key, own, crop, tuple(places[place : place + count])))
        tile, place = tile + len(own), place + count
    return pictures
