"""Guides: JSON schemas, expressions and grammars through llguidance, boxes through `processing`; they sample nothing.

llguidance is optional (``pip install "modelwright[guide]"``) and imported when the first such guide is compiled.
"""

from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from modelwright.engine.params import Guide
from modelwright.engine.sample_row import TokenGuide
from modelwright.errors import ConfigError, RequestError
from modelwright.processing.box_constraint import BoxConstraint

_KEPT_GRAMMARS = 256


class GuideCompiler:
    """Makes guides that can be followed, for one tokenizer; what it compiled it keeps for requests that ask again.

    Args:
        tokenizer: a fast one, of transformers.
        eos_token_ids: the tokens by which a guided output may end where its guide is satisfied.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._eos_token_ids = list(eos_token_ids)
        self._compiled = lru_cache(_KEPT_GRAMMARS)(self._compile)

    def start(self, guide: Guide, prompt_length: int) -> TokenGuide:
        """A follower of `guide` for one sample, whose prompt is so many tokens long.

        Raises:
            RequestError: llguidance is not installed, the tokenizer does not fit, or the guide cannot be followed; the
                message holds the reason.
        """
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            kind = type(self._tokenizer).__name__
            raise RequestError(f"guides need a fast tokenizer (PreTrainedTokenizerFast), got {kind}")
        if guide.boxes:
            return BoxGuide(self._boxes, len(self._tokenizer))
        return GrammarGuide(self._compiled(guide).deep_copy(), prompt_length)

    def _compile(self, guide: Guide) -> Any:
        """A matcher at the beginning of `guide`, to be copied."""
        kind, text = next((kind, text) for kind in _KINDS if (text := getattr(guide, kind)) is not None)
        matchers = _llguidance().LLMatcher
        try:
            grammar = getattr(matchers, _KINDS[kind])(text)
        except ValueError as error:
            raise RequestError(f"the guide's {kind} cannot be followed: {error}") from error
        limits = _llguidance().LLParserLimits(verbose_errors=False)
        matcher = matchers(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(f"the guide's {kind} cannot be followed: {matcher.get_error().strip()}")
        return matcher

    @cached_property
    def _vocabulary(self) -> Any:
        """The tokenizer as llguidance reads it, from its JSON."""
        backend = copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return _llguidance().LLTokenizer(backend.to_str(), eos_token=self._eos_token_ids or None)

    @cached_property
    def _boxes(self) -> BoxConstraint:
        try:
            return BoxConstraint(self._tokenizer)
        except ConfigError as error:
            raise RequestError(f"the guide's boxes cannot be followed: {error}") from error


class GrammarGuide:
    """Follows one output with an llguidance matcher of its own."""

    def __init__(self, matcher: Any, prompt_length: int):
        self._matcher = matcher
        self._read = prompt_length

    @property
    def error(self) -> str:
        """Why it stopped following, for instance at a limit of llguidance; then it allows nothing. Else empty."""
        return self._matcher.get_error()

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        self._follow(tokens)
        if self._matcher.is_error():
            return torch.zeros(0, dtype=torch.bool)
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")).bool()

    def ended(self, tokens: Sequence[int]) -> bool:
        self._follow(tokens)
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _follow(self, tokens: Sequence[int]) -> None:
        if self._read < len(tokens) and not self._matcher.is_error():
            self._matcher.consume_tokens(list(tokens[self._read :]))
        self._read = len(tokens)


class BoxGuide:
    """Follows one text, prompt and output: free outside ``<|det|>``, inside only what `constraint` allows."""

    def __init__(self, constraint: BoxConstraint, vocabulary: int):
        self._constraint = constraint
        self._free = torch.zeros(1, vocabulary)
        self._inside: list[int] = []  # from the ``<|det|>`` on that is still open
        self._read = 0

    def allowed(self, tokens: Sequence[int]) -> Tensor | None:
        for token in tokens[self._read :]:
            if token == self._constraint.open_id:
                self._inside = [token]
            elif token == self._constraint.close_id:
                self._inside = []
            elif self._inside:
                self._inside.append(token)
        self._read = len(tokens)
        if not self._inside:
            return None
        ids = torch.tensor([self._inside])
        return torch.isfinite(self._constraint(ids, self._free)[0])  # type: ignore[arg-type]  # LongTensor is a fiction

    def ended(self, tokens: Sequence[int]) -> bool:
        return False


_KINDS = {"json_schema": "grammar_from_json_schema", "regex": "grammar_from_regex", "grammar": "grammar_from_lark"}


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise RequestError('guides need llguidance: pip install "modelwright[guide]"') from error
