"""Random content through a preprocessor: what `OnnxConfig.generate_dummy_inputs` hands to a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from modelwright.errors import ConfigError

CHANNELS = (1, 3, 4)
TEXT_TOKENS = 8


def dummy_pictures(
    preprocessor: Any,
    batch_size: int,
    seq_length: int,
    is_pair: bool,
    framework: str | None,
    num_channels: int,
    size: tuple[int, int],
) -> Mapping[str, Any]:
    """What ``preprocessor`` makes of pictures of random pixels, the same ones each time.

    Args:
        preprocessor: called with ``images=`` and ``return_tensors=``: an image processor of ours or transformers'.
        batch_size: pictures.
        seq_length: keep this many tokens of each picture; -1 keeps all.
        is_pair: must be False: a picture has no second part.
        framework: ``pt``, ``np`` or None, handed on as ``return_tensors``.
        num_channels: 1 (greyscale), 3 or 4 (RGBA); the pictures handed over are RGB.
        size: width and height in pixels; the preprocessor may resize them.

    Raises:
        ConfigError: an argument out of its range.
    """
    width, height = size
    _check(is_pair, batch_size=batch_size, image_width=width, image_height=height)
    if num_channels not in CHANNELS:
        raise ConfigError(f"num_channels must be 1, 3 or 4, got {num_channels}")
    pixels = np.random.default_rng(0).integers(256, size=(batch_size, height, width, num_channels), dtype=np.uint8)
    if num_channels == 1:
        pixels = pixels[..., 0]
    pictures = [Image.fromarray(picture).convert("RGB") for picture in pixels]
    made = dict(preprocessor(images=pictures, return_tensors=framework))
    return {name: _first_tokens(name, rows, seq_length) for name, rows in made.items()}


def dummy_texts(
    preprocessor: Any, batch_size: int, seq_length: int, is_pair: bool, framework: str | None
) -> Mapping[str, Any]:
    """What a tokenizer makes of a text of random tokens, the same one in every row.

    ``seq_length`` is how many tokens to keep of each row, -1 being a few; the rest is as for :func:`dummy_pictures`.
    """
    _check(is_pair, batch_size=batch_size)
    tokens = TEXT_TOKENS if seq_length == -1 else seq_length
    drawn = np.random.default_rng(0).integers(len(preprocessor), size=8 * max(tokens, 1))
    made = dict(preprocessor([preprocessor.decode(drawn.tolist())] * batch_size, return_tensors=framework))
    return {name: _first_tokens(name, rows, tokens) for name, rows in made.items()}


def _check(is_pair: bool, **sizes: int) -> None:
    if is_pair:
        raise ConfigError("is_pair must be False: a causal model reads one thing a row, got True")
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _first_tokens(name: str, rows: Any, tokens: int) -> Any:
    """``rows`` ``[batch, tokens, ...]``, an array or a list of rows, cut to its first tokens; -1 keeps all."""
    if tokens == -1:
        return rows
    longest = min(len(row) for row in rows)
    if not 1 <= tokens <= longest:
        raise ConfigError(f"seq_length must be -1 or from 1 to the {longest} of {name}, got {tokens}")
    return [row[:tokens] for row in rows] if isinstance(rows, list) else rows[:, :tokens]
