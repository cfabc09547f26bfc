"""`Prompt`, a request's tokens and pictures as the engine keeps them, made from what a processor gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from modelwright.engine.prefix import Key
from modelwright.engine.served_model import ServedModel
from modelwright.errors import RequestError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config

_PARTS = {"input_ids": 2, "attention_mask": 2, "images": 5, "images_seq_mask": 2, "images_spatial_crop": 3}
"""What is read of a processor's output, and how many dimensions each has."""


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


def read_prompt(given: Any, tokenizer: Any, served: ServedModel) -> Prompt:
    """A prompt from text, from token ids, or from the batch of one row that a processor makes.

    Padding is left out: where an ``attention_mask`` says so, or without one what is the model's padding id. That is
    what `generate()` makes of the same prompt, and no penalty counts it.

    Raises:
        RequestError: text without a tokenizer, several rows, pictures for a model that sees none, or places, tiles and
            rows of pictures that differ in number.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        if tokenizer is None:
            raise RequestError("a prompt as text needs a tokenizer, and the engine has none")
        return Prompt(tuple(tokenizer.encode(given)))
    if isinstance(given, Mapping):
        return _from_batch(given, served)
    return Prompt(tuple(token for token in _ids(given) if token != served.padding))


def _ids(given: Any) -> Sequence[int]:
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
        raise RequestError(f"a prompt must be text, token ids or a processor's output, got {type(given).__name__}")
    return values


def _from_batch(batch: Mapping[str, Any], served: ServedModel) -> Prompt:
    parts = _read_parts(batch)
    ids = parts["input_ids"]
    if "attention_mask" in parts:
        real = parts["attention_mask"].bool()
    else:
        real = torch.tensor([token != served.padding for token in ids.tolist()], dtype=torch.bool)
    tokens = tuple(ids[real].tolist())
    marked = parts.get("images_seq_mask", torch.zeros_like(ids)).bool()
    places = marked[real].nonzero()[:, 0].tolist()
    crops = [(w, h) for w, h in parts["images_spatial_crop"].tolist() if w and h] if "images" in parts else []
    if not crops and not places:
        return Prompt(tokens)
    config = served.model.config
    if not isinstance(config, DeepseekVLV2Config):
        raise RequestError(f"a {config.model_type} model reads text only, and the prompt holds {len(crops)} pictures")
    return Prompt(tokens, tuple(_pictures(parts, crops, places, config)))


def _read_parts(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parts of a batch of one row, without the row's dimension, on the CPU."""
    if "input_ids" not in batch:
        raise RequestError(f"a processor's output must hold input_ids, got {', '.join(batch) or 'nothing'}")
    parts = {}
    for name, dimensions in _PARTS.items():
        if batch.get(name) is None:
            continue
        part = torch.as_tensor(batch[name])
        if part.dim() != dimensions or len(part) != 1:
            raise RequestError(
                f"{name} of one prompt must have {dimensions} dimensions, the first 1, got {_shape(part)}"
            )
        parts[name] = part[0].cpu()
    missing = [name for name in ("images_seq_mask", "images_spatial_crop") if "images" in parts and name not in parts]
    if missing:
        raise RequestError(f"images come with images_seq_mask and images_spatial_crop; {missing[0]} is missing")
    return parts


def _pictures(
    parts: Mapping[str, Tensor], crops: list[tuple[int, int]], places: list[int], config: DeepseekVLV2Config
) -> list[PromptPicture]:
    rows = [config.picture_tokens(crop) for crop in crops]
    if sum(rows) != len(places):
        raise RequestError(f"the prompt has {len(places)} image places and its pictures have {sum(rows)} rows")
    tiles, counts, side = parts["images"], [1 + w * h for w, h in crops], config.vision_config.image_size
    if sum(counts) > len(tiles) or tiles.shape[1:] != (3, side, side):
        raise RequestError(f"images must be at least {sum(counts)} tiles of [3, {side}, {side}], got {_shape(tiles)}")
    pictures, tile, place = [], 0, 0
    for crop, count, height in zip(crops, counts, rows, strict=True):
        own = tiles[tile : tile + count].contiguous()
        pictures.append(PromptPicture(_key(own, crop), own, crop, tuple(places[place : place + height])))
        tile, place = tile + count, place + height
    return pictures


def _key(tiles: Tensor, crop: tuple[int, int]) -> bytes:
    return sha256(repr((crop, tiles.dtype)).encode() + tiles.view(torch.uint8).numpy().tobytes()).digest()


def _shape(part: Tensor) -> list[int]:
    return list(part.shape)
