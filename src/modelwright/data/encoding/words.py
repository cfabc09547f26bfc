"""Rows of words as documents, for models that read words alone; labels come from `printed`, not from the template."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding.learning import Room, learned_of, refuse
from modelwright.data.encoding.printed import ChatPrinter
from modelwright.data.encoding.spans import Span, encode_spans
from modelwright.data.examples import Chat, Example, Message, Pair, Picture, Place, Text, Tokens
from modelwright.errors import RequestError
from modelwright.processing.marks import encode_text
from modelwright.processing.templates import pick_template


class WordEncoder:
    """Documents by a tokenizer.

    Args:
        tokenizer: a fast one of transformers.
        template: the Jinja template that prints conversations where the tokenizer brings none.
        labels: ``data.labels``.
        room: how long a document may be.
        vocabulary: how many tokens the model knows; None leaves ids unchecked.
    """

    packs = True

    def __init__(self, tokenizer: Any, template: str | None, labels: str, room: Room, vocabulary: int | None = None):
        self.tokenizer, self.labels, self.room, self.vocabulary = tokenizer, labels, room, vocabulary
        self.template = pick_template(tokenizer.chat_template, None, with_tools=False) or template
        self.pad_id = pad_of(tokenizer)
        self._printer = None if self.template is None else ChatPrinter(tokenizer, self.template)

    def __call__(self, example: Example) -> Document:
        """See `Encoder`."""
        content = example.content
        try:
            if isinstance(content, Tokens):
                ids, learned = given_tokens(content, self.vocabulary)
            elif isinstance(content, Text):
                ids = np.array(encode_text(self.tokenizer, content.text), np.int64)
                ids, learned = self._ended(ids, np.ones(len(ids), bool))
            elif isinstance(content, Pair):
                ids, learned = self._pair(content)
            elif isinstance(content, Chat):
                ids, learned = self._chat(content.messages)
            else:
                raise no_words(content)
            require_known(ids, self.vocabulary)
        except RequestError as error:
            raise refuse(example.place, error) from error
        return self.room.fitted(document_of(ids, learned, example.place))

    outline = __call__

    def _pair(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        text, start = pair.prompt + pair.completion, 0 if self.labels == "all" else len(pair.prompt)
        ids, learned = encode_spans(text, [(start, len(text))], self.tokenizer)
        before = self._mark_before(text)
        ids = np.concatenate([before, ids])
        return self._ended(ids, np.concatenate([np.zeros(len(before), bool), learned]))

    def _mark_before(self, text: str) -> np.ndarray:
        """The beginning of sentence that the tokenizer puts before a text, unless the text brings it."""
        ids, bos = encode_text(self.tokenizer, text), self.tokenizer.bos_token_id
        bare = self.tokenizer.encode(text, add_special_tokens=False)
        return np.array([bos] if ids[:1] == [bos] and bare[:1] != [bos] else [], np.int64)

    def _ended(self, ids: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens with the end of sentence behind them, once, which is learned."""
        eos = self.tokenizer.eos_token_id
        if eos is None or (len(ids) and ids[-1] == eos):
            return ids, learned
        return np.append(ids, eos), np.append(learned, True)

    def _chat(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        if self._printer is None:
            raise RequestError(
                "the model's folder has no chat template, neither chat_template.jinja nor chat_template in "
                "tokenizer_config.json, so conversations cannot be printed as it will read them"
            )
        if any(message.pictures for message in messages):
            raise RequestError("the model reads text only, and the messages show pictures")
        learning = learned_of(messages, self.labels)
        words = [{"role": message.role, "content": message.words} for message in messages]
        if not learning.rest:
            printed = self._printer(words, learning.answers)
            spans = printed.learned
        else:  # all but the answers that say so themselves
            own = {number for number, message in enumerate(messages) if message.role == "assistant"}
            printed = self._printer(words, own - learning.answers)
            spans = _around(printed.learned, len(printed.text))
        ids, learned = encode_spans(printed.text, spans, self.tokenizer)
        return (ids, learned) if printed.ends else self._ended(ids, learned)


def _around(spans: Sequence[Span], length: int) -> list[Span]:
    """All but some stretches of a text."""
    starts, stops = [0, *(stop for _, stop in spans)], [*(start for start, _ in spans), length]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def document_of(ids: np.ndarray, learned: np.ndarray, place: Place) -> Document:
    """The document of tokens of which some are learned; the first never is."""
    labels = np.where(learned, ids, UNLEARNED)
    labels[:1] = UNLEARNED
    return Document(ids, labels, place)


def require_known(ids: np.ndarray, vocabulary: int | None) -> None:
    """Raise a RequestError for a token that a tokenizer writes and the model has no embedding for."""
    if vocabulary is not None and ids.size and ids.max() >= vocabulary:
        raise RequestError(
            f"the tokenizer writes token {ids.max()}, and the model knows {vocabulary} tokens: resize its embedding "
            "(resize_token_embeddings), or take the tokenizer that it was made with"
        )


def given_tokens(tokens: Tokens, vocabulary: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens as a row gives them, and which are learned.

    Raises:
        RequestError: ids outside of the vocabulary, or labels that are neither those of their tokens nor -100.
    """
    ids = np.asarray(tokens.ids, np.int64)
    if ids.size and (ids.min() < 0 or (vocabulary is not None and ids.max() >= vocabulary)):
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        limit = "" if vocabulary is None else f" and below the model's {vocabulary} tokens"
        raise RequestError(f"input_ids must be at least 0{limit}, got {wrong}")
    if tokens.labels is None:
        return ids, np.ones(len(ids), bool)
    labels = np.asarray(tokens.labels, np.int64)
    if labels.shape != ids.shape:
        raise RequestError(f"labels must be as many as input_ids ({len(ids)}), got {len(labels)}")
    odd = np.flatnonzero((labels != UNLEARNED) & (labels != ids))
    if odd.size:
        at = int(odd[0])
        raise RequestError(
            f"labels[{at}] must be input_ids[{at}] ({int(ids[at])}) or {UNLEARNED}, got {int(labels[at])}: labels are "
            "those of the tokens themselves, and are shifted by the model"
        )
    return ids, labels != UNLEARNED


def pad_of(tokenizer: Any) -> int:
    """What fills the tail of a row: the padding of a tokenizer, or another token, because nothing looks at it."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(id_ for id_ in found if id_ is not None)


def no_words(content: object) -> RequestError:
    """The error for a row that a model of words cannot read."""
    if isinstance(content, Picture):
        return RequestError(
            "the row is a picture alone, and the model learns words: they stand under caption, text, query and "
            "response, or messages"
        )
    return RequestError(f"the row is a {type(content).__name__}, and the model learns words")
