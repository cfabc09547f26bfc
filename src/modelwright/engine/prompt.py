"""`Prompt`, a request's tokens and pictures as the engine keeps them, made from what a caller or a processor gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from modelwright.configs.field_types import cut, shown
from modelwright.engine.prefix import Key
from modelwright.engine.served_model import ServedModel
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.marks import encode_text

_PARTS = {"input_ids": 2, "attention_mask": 2, "images": 5, "images_seq_mask": 2, "images_spatial_crop": 3}
"""What is read of a processor's output, and how many dimensions each has; `input_ids` come first."""
_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_ANY = {*_WHOLE, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}
_TYPES = dict.fromkeys(_PARTS, _ANY) | {"input_ids": _WHOLE, "images_spatial_crop": _WHOLE}


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


def read_prompt(given: Any, tokenizer: Tokenizer | None, served: ServedModel) -> Prompt:
    """A prompt from text, token ids, a processor's `ProcessedPrompt`, or the batch of one row that a processor makes.

    A `ProcessedPrompt` is taken as it is. Of ids and batches padding is left out: where an ``attention_mask`` says so,
    or without one what is the model's padding id. That is what `generate()` makes of the same prompt, and no penalty
    counts it.

    Raises:
        RequestError: text without a tokenizer, several rows, pictures for a model that sees none, or places, tiles and
            rows of pictures that differ in number.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, ProcessedPrompt):
        return _seen(_Row.of_processed(given), served)
    if isinstance(given, Mapping):
        return _seen(_Row.of_batch(given, served.padding), served)
    if isinstance(given, str):
        if tokenizer is None:
            raise RequestError("a prompt as text needs a tokenizer, and the engine has none")
        return Prompt(tuple(_encode(tokenizer, given)))
    return Prompt(tuple(token for token in _ids(given) if token != served.padding))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt's text.

    Raises:
        RequestError: it holds half of a surrogate pair, which is no character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RequestError(f"a prompt must be text in UTF-8, got {half} at character {error.start}") from None
    return encode_text(tokenizer, text)


def _ids(given: Any) -> Sequence[int]:
    """The ids in a list, an array or a tensor of integers."""
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if not isinstance(values, Sequence) or isinstance(values, bytes | bytearray):
        raise RequestError(f"a prompt must be text, token ids or a processor's output, got {type(given).__name__}")
    for place, value in enumerate(values):
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise RequestError(
                f"a prompt must be text, token ids or a processor's output, got {type(given).__name__} with "
                f"{shown(value)} at place {place}"
            )
    return [int(value) for value in values]


@dataclass(frozen=True)
class _Row:
    """One prompt without padding.

    Attributes:
        tokens: its ids.
        places: which of them stand for rows of pictures.
        tiles: ``[tiles, 3, S, S]``, those of all pictures one after the other; more may follow.
        crops: ``(width, height)`` of each picture's local tiles.
    """

    tokens: tuple[int, ...]
    places: list[int]
    tiles: Tensor | None
    crops: list[tuple[int, int]]

    @classmethod
    def of_processed(cls, prompt: ProcessedPrompt) -> Self:
        """What a processor made of a conversation."""
        places = prompt.images_seq_mask.nonzero()[0].tolist()
        tokens = tuple(prompt.input_ids.tolist())
        return cls(tokens, places, torch.from_numpy(prompt.images), _real(prompt.images_spatial_crop.tolist()))

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], padding: int | None) -> Self:
        """The row of a batch of one.

        Args:
            padding: the id to leave out where the batch has no ``attention_mask``.
        """
        parts = _read_parts(batch)
        ids = parts["input_ids"].long()
        if "attention_mask" in parts:
            real = parts["attention_mask"].bool()
        else:
            real = torch.tensor([token != padding for token in ids.tolist()], dtype=torch.bool)
        marked = parts.get("images_seq_mask", torch.zeros_like(ids)).bool()
        places = marked[real].nonzero()[:, 0].tolist()
        tiles = parts.get("images")
        crops = [] if tiles is None else _real(parts["images_spatial_crop"].tolist())
        return cls(tuple(ids[real].tolist()), places, tiles, crops)


def _real(crops: list[list[int]]) -> list[tuple[int, int]]:
    """The tilings of pictures; zeros stand for none."""
    for crop in crops:
        if len(crop) != 2 or min(crop) < 0:
            raise RequestError(f"images_spatial_crop must hold pairs of numbers that are at least 0, got {shown(crop)}")
    return [(width, height) for width, height in crops if width and height]


def _seen(row: _Row, served: ServedModel) -> Prompt:
    """The prompt of a row, for a model that sees its pictures, if there are any."""
    if not row.crops and not row.places:
        return Prompt(row.tokens)
    config: Any = served.model.config
    if not served.sees:
        raise RequestError(
            f"a {config.model_type} model reads text only, and the prompt holds {len(row.crops)} pictures"
        )
    return Prompt(row.tokens, tuple(_pictures(row, config)))


def _read_parts(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parts of a batch of one row, without the row's dimension, on the CPU."""
    if batch.get("input_ids") is None:
        names = ", ".join(map(str, batch))
        raise RequestError(f"a processor's output must hold input_ids, got {cut(names)[1:-1] or 'nothing'}")
    parts = {}
    for name, dimensions in _PARTS.items():
        if batch.get(name) is None:
            continue
        try:
            part = torch.as_tensor(batch[name])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise RequestError(f"{name} of one prompt must be an array of numbers, got {shown(batch[name])}") from error
        if part.dtype not in _TYPES[name]:
            kinds = "integers" if name in ("input_ids", "images_spatial_crop") else "numbers"
            raise RequestError(f"{name} of one prompt must hold {kinds}, got {str(part.dtype).removeprefix('torch.')}")
        if part.dim() != dimensions or len(part) != 1:
            raise RequestError(
                f"{name} of one prompt must have {dimensions} dimensions, the first 1, got {_shape(part)}"
            )
        parts[name] = part[0].cpu()
        if dimensions == 2 and len(parts[name]) != len(parts["input_ids"]):
            tokens = len(parts["input_ids"])
            raise RequestError(f"{name} must be as long as input_ids ({tokens}), got {len(parts[name])}")
    missing = [name for name in ("images_seq_mask", "images_spatial_crop") if "images" in parts and name not in parts]
    if missing:
        raise RequestError(f"images come with images_seq_mask and images_spatial_crop; {missing[0]} is missing")
    return parts


def _pictures(row: _Row, config: Any) -> list[PromptPicture]:
    """The pictures of a row; `config`, of a model that sees, says how many rows each takes and how large tiles are."""
    rows = [config.picture_tokens(crop) for crop in row.crops]
    if row.tiles is None or sum(rows) != len(row.places):
        raise RequestError(f"the prompt has {len(row.places)} image places and its pictures have {sum(rows)} rows")
    tiles, counts, side = row.tiles, [1 + w * h for w, h in row.crops], config.vision_config.image_size
    if sum(counts) > len(tiles) or tiles.shape[1:] != (3, side, side):
        raise RequestError(f"images must be at least {sum(counts)} tiles of [3, {side}, {side}], got {_shape(tiles)}")
    pictures, tile, place = [], 0, 0
    for crop, count, height in zip(row.crops, counts, rows, strict=True):
        own = tiles[tile : tile + count].contiguous()
        if not own.isfinite().all():
            raise RequestError(f"images must hold finite numbers, and picture {len(pictures)} does not")
        pictures.append(PromptPicture(_key(own, crop), own, crop, tuple(row.places[place : place + height])))
        tile, place = tile + count, place + height
    return pictures


def _key(tiles: Tensor, crop: tuple[int, int]) -> bytes:
    return sha256(repr((crop, tiles.dtype)).encode() + tiles.view(torch.uint8).numpy().tobytes()).digest()


def _shape(part: Tensor) -> list[int]:
    return list(part.shape)
