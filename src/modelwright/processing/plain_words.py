"""Special tokens that a user writes are words: they are encoded as the characters that they are, whoever sends them.

A server prints what strangers wrote into a prompt whose turns are marked by special tokens. `cut_marks` cuts such
tokens in a stranger's words, so that a template prints them without anybody taking them for its own; `encode_words`
then encodes the printed text by a twin of the tokenizer, in which the special tokens have names that no text holds. So
all other text is encoded as ever, and what was cut as if there were no such token.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from secrets import token_hex
from typing import Any

import tokenizers

_CUT = "\ufdd0"
"""Stands behind the first character of what was cut; a code point that Unicode keeps out of texts."""
_TWIN = f"\ufdd1{token_hex(16)} {{}}\ufdd2"
"""The name of a special token in the twin: another one in each process, so that no stranger can write it."""


def cut_marks(text: str, tokenizer: Any, acting: Collection[str] = ()) -> str:
    """`text` with its special tokens cut, but those of `acting`."""
    if "<" not in text and not _marks(tokenizer).odd:
        return text
    found = _marks(tokenizer).anywhere
    return text if found is None else found.sub(lambda mark: mark[0] if mark[0] in acting else _cut(mark[0]), text)


def plainly(said: Any, plain: Callable[[str], str]) -> Any:
    """JSON with each of its texts, names of fields too, made plain."""
    if isinstance(said, str):
        return plain(said)
    if isinstance(said, Mapping):
        return {plain(name): plainly(value, plain) for name, value in said.items()}
    return [plainly(value, plain) for value in said] if isinstance(said, list | tuple) else said


def encode_words(text: str, tokenizer: Any) -> list[int]:
    """The tokens of `text`, no marks around it: special tokens act, unless they were cut."""
    if _CUT not in text:
        return tokenizer.encode(text, add_special_tokens=False)
    marks = _marks(tokenizer)
    named = marks.anywhere.sub(lambda mark: _TWIN.format(marks.ids[mark[0]]), text) if marks.anywhere else text
    for mark in marks.ids:
        named = named.replace(_cut(mark), mark)
    return marks.twin.encode(named, add_special_tokens=False).ids


def whole_words(text: str, tokenizer: Any) -> str:
    """`text` as it was before anything of it was cut."""
    if _CUT in text:
        for mark in _marks(tokenizer).ids:
            text = text.replace(_cut(mark), mark)
    return text


def _cut(mark: str) -> str:
    return mark[0] + _CUT + mark[1:]


class _Marks:
    """The special tokens of one tokenizer, and its twin."""

    def __init__(self, backend: tokenizers.Tokenizer):
        added = backend.get_added_tokens_decoder()
        self.ids = {token.content: id_ for id_, token in added.items() if token.special and token.content}
        self.odd = any("<" not in mark for mark in self.ids)
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.anywhere = re.compile("|".join(map(re.escape, longest_first))) if self.ids else None
        self._backend = backend
        self._twin: tokenizers.Tokenizer | None = None

    @property
    def twin(self) -> tokenizers.Tokenizer:
        """Made when it is first needed, which for a large vocabulary takes a second."""
        if self._twin is None:
            state = json.loads(self._backend.to_str())
            names = {mark: _TWIN.format(id_) for mark, id_ in self.ids.items()}
            for token in state["added_tokens"]:
                token["content"] = names.get(token["content"], token["content"])
            vocabulary = state["model"].get("vocab")
            if isinstance(vocabulary, dict):
                state["model"]["vocab"] = {names.get(word, word): id_ for word, id_ in vocabulary.items()}
            elif isinstance(vocabulary, list):  # of a Unigram model: pairs of a word and its score
                state["model"]["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
            unknown = state["model"].get("unk_token")
            state["model"] |= {} if unknown is None else {"unk_token": names.get(unknown, unknown)}
            state["post_processor"] = None  # it names marks, and none are put around the text
            self._twin = tokenizers.Tokenizer.from_str(json.dumps(state))
            self._twin.no_padding()
            self._twin.no_truncation()
        return self._twin


def _marks(tokenizer: Any) -> _Marks:
    return _marks_of(_Same(tokenizer.backend_tokenizer))


class _Same:
    """A Rust tokenizer as a key: the one object, as long as its tokens are as many."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        self._key = id(backend), backend.get_vocab_size()

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key


@lru_cache(8)
def _marks_of(key: _Same) -> _Marks:
    return _Marks(key.backend)
