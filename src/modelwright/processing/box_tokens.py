"""Which tokens may follow ``<|det|>``: `box_grammar` over a vocabulary, for whatever draws tokens; no tensors here."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from modelwright.errors import ConfigError
from modelwright.processing.box_grammar import ALPHABET, DET_CLOSE, BoxGrammar, BoxState

DET_OPEN = "<|det|>"
_SPACES = {"Ġ": " ", "▁": " "}  # how byte-level and sentencepiece vocabularies write a space
_REMEMBERED_STATES = 4096


class BoxTokens:
    """The tokens of well-formed boxes.

    Args:
        vocabulary: token to id.
        max_boxes: how many boxes a list may hold.

    Attributes:
        open_id, close_id: the ids of ``<|det|>`` and ``<|/det|>``.

    Raises:
        ConfigError: the vocabulary lacks the two tags, or a single token for a bracket, the comma or a digit.
    """

    def __init__(self, vocabulary: Mapping[str, int], max_boxes: int = 100):
        for token in (DET_OPEN, DET_CLOSE, *ALPHABET.replace(" ", "")):
            if token not in vocabulary:
                raise ConfigError(f"boxes cannot be constrained: the tokenizer has no token {token!r}")
        self.open_id, self.close_id = vocabulary[DET_OPEN], vocabulary[DET_CLOSE]
        self._grammar = BoxGrammar(max_boxes)
        self._texts = {id_: text for token, id_ in vocabulary.items() if (text := _grammar_text(token))}
        self._after = lru_cache(_REMEMBERED_STATES)(self._find_allowed)

    def allowed(self, written: Iterable[int]) -> tuple[int, ...] | None:
        """The tokens that may follow `written`, which stands behind ``<|det|>``; None where it has left the grammar."""
        state: BoxState | None = BoxState()
        for id_ in written:
            state = self._grammar.advance(state, self._texts[id_]) if id_ in self._texts else None
        return None if state is None else self._after(state)

    def _find_allowed(self, state: BoxState) -> tuple[int, ...]:
        if state.place == "done":
            return (self.close_id,)
        return tuple(id_ for id_, text in self._texts.items() if self._grammar.advance(state, text) is not None)


def _grammar_text(token: str) -> str:
    """What a vocabulary entry prints, if it is made of the grammar's characters only; otherwise nothing."""
    text = "".join(_SPACES.get(character, character) for character in token)
    return text if all(character in ALPHABET for character in text) else ""
