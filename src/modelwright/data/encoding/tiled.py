"""Rows of words and pictures as documents, for a DeepSeek-VL2: its own chat format, tokens and tiles."""

import numpy as np

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding.learning import Room, learned_of, refuse
from modelwright.data.encoding.words import document_of, given_tokens, no_words, pad_of, require_known
from modelwright.data.examples import Chat, Example, Message, Pair, PictureRef, Text, Tokens
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.messages import PictureSlot, Turn
from modelwright.processing.tiled_prompts import TiledPrompts

_ROLES = ("system", "user", "assistant")


class TiledEncoder:
    """Documents by a model's prompts.

    Args:
        prompts: what makes its prompts; special tokens written in the text are those tokens, as in grounding.
        labels: ``data.labels``.
        room: how long a document may be.
        vocabulary: how many tokens the model knows; None leaves ids unchecked.
    """

    packs = True

    def __init__(self, prompts: TiledPrompts, labels: str, room: Room, vocabulary: int | None = None):
        self.prompts, self.labels, self.room, self.vocabulary = prompts, labels, room, vocabulary
        self.pad_id = pad_of(prompts.tokenizer)

    def __call__(self, example: Example) -> Document:
        """See `Encoder`."""
        return self._document(example, pixels=True)

    def outline(self, example: Example) -> Document:
        """See `Encoder`."""
        return self._document(example, pixels=False)

    def _document(self, example: Example, pixels: bool) -> Document:
        content = example.content
        try:
            if isinstance(content, Tokens):
                ids, learned = given_tokens(content, self.vocabulary)
                if (ids == self.prompts.image_token_id).any():
                    raise RequestError("input_ids hold the token of pictures, and the row brings no picture")
                return self.room.fitted(document_of(ids, learned, example.place))
            prompt = self._prompt(content, pixels)
            require_known(prompt.input_ids, self.vocabulary)
        except RequestError as error:
            raise refuse(example.place, error) from error
        labels = np.where(prompt.labels == self.prompts.settings.ignore_id, UNLEARNED, prompt.labels)
        labels[:1] = UNLEARNED
        shows = bool(prompt.num_image_tokens)
        grids = tuple((int(columns), int(rows)) for columns, rows in prompt.images_spatial_crop) if shows else ()
        document = Document(
            prompt.input_ids,
            labels,
            example.place,
            tiles=prompt.images if shows and pixels else None,
            grids=grids,
            picture_mask=prompt.images_seq_mask if shows else None,
        )
        return self.room.fitted(document, prompt.num_image_tokens)

    def _prompt(self, content: object, pixels: bool) -> ProcessedPrompt:
        if isinstance(content, Text):
            return self.prompts.process_texts(content.text, inference_mode=False)[0]
        if isinstance(content, Pair):
            learns_all = self.labels == "all"
            return self.prompts.process_completion(content.prompt, content.completion, learn_prompt=learns_all)
        if isinstance(content, Chat):
            learning = learned_of(content.messages, self.labels)
            turns = [_turn(number, message) for number, message in enumerate(content.messages)]
            return self.prompts.process_turns(turns, learning.answers, rest=learning.rest, pixels=pixels)
        raise no_words(content)


def _turn(number: int, message: Message) -> Turn:
    """A message as the processor reads it, white space at both ends removed.

    Raises:
        RequestError: a role that the format has not, a system message that is not the first, or a picture that no user
            shows.
    """
    if message.role not in _ROLES:
        raise RequestError(f"messages[{number}] has role {message.role!r}: it must be one of {', '.join(_ROLES)}")
    if message.role == "system" and number:
        raise RequestError(f"the system message must be the first, but it is messages[{number}]")
    if message.pictures and message.role != "user":
        raise RequestError(f"messages[{number}] has role {message.role!r}: only a user may show pictures")
    parts = [*message.parts]
    while parts and isinstance(parts[0], str) and not parts[0].strip():
        parts.pop(0)
    while parts and isinstance(parts[-1], str) and not parts[-1].strip():
        parts.pop()
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return Turn(message.role, tuple(_slot(part) if isinstance(part, PictureRef) else part for part in parts))


def _slot(picture: PictureRef) -> PictureSlot:
    return PictureSlot(picture.source, picture.detail or "auto")
