"""Tokens to text as they come, characters whole; knows no model and prints nothing itself."""

import time
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

_HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder prints for bytes that are no character, or not one yet


class TextStream(BaseStreamer):
    """Hands text to ``emit`` as soon as its characters are complete; white space at the beginning is left out.

    Attributes:
        text: all that was emitted.
        tokens: how many tokens came, hidden ones too.
        first, last: when the first and the last of them came, by ``time.perf_counter``.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int], emit: Callable[[str], None]):
        self.text = ""
        self.tokens = 0
        self.first: float | None = None
        self.last: float | None = None
        self._tokenizer = tokenizer
        self._hidden = frozenset(hidden)
        self._emit = emit
        self._saw_prompt = False
        self._ids: list[int] = []
        self._known = 0  # ids before this one have been emitted
        self._start = 0  # ids from here on are decoded together, so that spaces between words are kept

    def put(self, value: Tensor) -> None:
        """Take the prompt (the first call, which is left out) or the next token ``[1]``."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        self.last = time.perf_counter()
        self.first = self.last if self.first is None else self.first
        ids = value.flatten().tolist()
        self.tokens += len(ids)
        self._ids += [token for token in ids if token not in self._hidden]
        self._flush(final=False)

    def end(self) -> None:
        """Emit what is left, broken characters too; calling it again changes nothing."""
        self._flush(final=True)

    def _flush(self, final: bool) -> None:
        before = self._decode(self._ids[self._start : self._known])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith(_HALF) and not final):
            return
        piece = now[len(before) :]
        self._start, self._known = self._known, len(self._ids)
        piece = piece if self.text else piece.lstrip()
        if piece:
            self.text += piece
            self._emit(piece)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
