"""The encoder that a model's processor asks for."""

from typing import Any

from modelwright.data.documents import Encoder
from modelwright.data.encoding.learning import Room
from modelwright.data.encoding.pixels import PixelEncoder
from modelwright.data.encoding.tiled import TiledEncoder
from modelwright.data.encoding.words import WordEncoder
from modelwright.data.settings import EncodingSettings
from modelwright.processing.pixels import Pixels
from modelwright.processing.tiled_prompts import TiledPrompts


def encoder_of(
    processor: Any, part: EncodingSettings, *, template: str | None = None, vocabulary: int | None = None
) -> Encoder:
    """What makes documents of rows for a model.

    Args:
        processor: the model's processor, or what makes its prompts; the tokenizer of a model that reads words alone.
        part: its ``labels``, ``seq_length`` and ``truncate``.
        template: the Jinja template by which the family prints conversations where the tokenizer brings none.
        vocabulary: how many tokens the model knows, for rows that are tokenised already.
    """
    room = Room(part.seq_length, part.truncate)
    reader = getattr(processor, "prompts", None) or getattr(processor, "pixels", None) or processor
    if isinstance(reader, TiledPrompts):
        return TiledEncoder(reader, part.labels, room, vocabulary)
    if isinstance(reader, Pixels):
        return PixelEncoder(reader, room)
    return WordEncoder(reader, template, part.labels, room, vocabulary)
