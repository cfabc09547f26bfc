"""Constrained decoding for ``generate``: after ``<|det|>`` only what keeps to `box_grammar`, then ``<|/det|>``."""

from functools import lru_cache
from typing import cast

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from modelwright.errors import ConfigError
from modelwright.processing.box_grammar import ALPHABET, DET_CLOSE, BoxGrammar, BoxState

DET_OPEN = "<|det|>"
_SPACES = {"Ġ": " ", "▁": " "}  # how byte-level and sentencepiece vocabularies write a space
_REMEMBERED_STATES = 4096


class BoxConstraint(LogitsProcessor):
    """Give it to ``generate(logits_processor=[BoxConstraint(tokenizer)])``; rows outside ``<|det|>`` are untouched.

    It keeps no state between calls, so beams and batches may be reordered. A row whose text after ``<|det|>`` has left
    the grammar already (a prompt may hold such text) is left free.

    Raises:
        ConfigError: the tokenizer lacks the two tags, or a single token for a bracket, the comma or a digit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_boxes: int = 100):
        vocabulary = tokenizer.get_vocab()
        for token in (DET_OPEN, DET_CLOSE, *ALPHABET.replace(" ", "")):
            if token not in vocabulary:
                raise ConfigError(f"boxes cannot be constrained: the tokenizer has no token {token!r}")
        self.grammar = BoxGrammar(max_boxes)
        self.open_id, self.close_id = vocabulary[DET_OPEN], vocabulary[DET_CLOSE]
        self._texts = {id_: text for token, id_ in vocabulary.items() if (text := _grammar_text(token))}
        self._allowed_ids = lru_cache(_REMEMBERED_STATES)(self._find_allowed_ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids [B, T], scores [B, V] -> scores [B, V] with forbidden tokens at minus infinity."""
        constrained = scores
        for row, ids in enumerate(input_ids.tolist()):
            state = self._state(ids)
            if state is None:
                continue
            if constrained is scores:
                constrained = cast(torch.FloatTensor, scores.clone())
            allowed = torch.tensor(self._allowed_ids(state), device=scores.device)
            constrained[row] = float("-inf")
            constrained[row, allowed] = scores[row, allowed]
        return constrained

    def _state(self, ids: list[int]) -> BoxState | None:
        """Where a row is in the grammar; None outside ``<|det|>``."""
        for start in range(len(ids) - 1, -1, -1):
            if ids[start] == self.close_id:
                return None
            if ids[start] == self.open_id:
                break
        else:
            return None
        state: BoxState | None = BoxState()
        for id_ in ids[start + 1 :]:
            state = self.grammar.advance(state, self._texts[id_]) if id_ in self._texts else None
        return state

    def _find_allowed_ids(self, state: BoxState) -> list[int]:
        if state.place == "done":
            return [self.close_id]
        return [id_ for id_, text in self._texts.items() if self.grammar.advance(state, text) is not None]


def _grammar_text(token: str) -> str:
    """What a vocabulary entry prints, if it is made of the grammar's characters only; otherwise nothing."""
    text = "".join(_SPACES.get(character, character) for character in token)
    return text if all(character in ALPHABET for character in text) else ""
