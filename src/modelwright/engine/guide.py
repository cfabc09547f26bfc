"""Guides: JSON schemas, expressions and grammars through llguidance, boxes through `processing`; they sample nothing.

llguidance is optional (``pip install "modelwright[guide]"``) and imported when the first such guide is compiled.
"""

import json
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property, lru_cache
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.engine.params import Guide
from modelwright.engine.sample_row import TokenGuide
from modelwright.engine.schema import enforced_schema
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import ConfigError, GuideError, RequestError
from modelwright.processing.box_tokens import BoxTokens

_KEPT_GRAMMARS = 256


class GuideCompiler:
    """Makes guides that can be followed, for one tokenizer, in any number of threads.

    What it compiled it keeps for requests that ask again, and for those that ask meanwhile, which wait for it.

    Args:
        tokenizer: what the engine reads and writes text with.
        eos_token_ids: the tokens by which a guided output may end where its guide is satisfied.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._eos_token_ids = list(eos_token_ids)
        self._kept = lru_cache(_KEPT_GRAMMARS)(lambda kind, text: Once(lambda: self._compile(kind, text)))
        self._vocabulary_once = Once(self._read_vocabulary)

    def start(self, guide: Guide, prompt_length: int) -> TokenGuide:
        """A follower of `guide` for one sample, whose prompt is so many tokens long.

        Raises:
            GuideError: the guide cannot be followed; the message holds the reason.
            RequestError: llguidance is not installed, or the tokenizer does not fit.
        """
        boxes = BoxGuide(self._boxes, len(self._tokenizer)) if guide.boxes else None
        written = next((kind for kind in _KINDS if getattr(guide, kind) is not None), None)
        if written is None:
            assert boxes is not None, "a guide has a kind"
            return boxes
        grammar = GrammarGuide(self._kept(written, getattr(guide, written)).value().deep_copy(), prompt_length)
        return grammar if boxes is None else BothGuides(grammar, boxes)

    def _compile(self, kind: str, text: str) -> Any:
        """A matcher at the beginning of a guide, to be copied."""
        matchers = _llguidance().LLMatcher
        try:
            grammar = getattr(matchers, _KINDS[kind])(
                json.dumps(enforced_schema(json.loads(text))) if kind == "json_schema" else text
            )
        except ValueError as error:
            hard = isinstance(error, GuideError) and error.too_complex
            raise GuideError(f"the guide's {kind} cannot be followed: {error}", too_complex=hard) from error
        limits = _llguidance().LLParserLimits(verbose_errors=False)
        matcher = matchers(self._vocabulary_once.value(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            reason = matcher.get_error().strip()
            hard = any(sign in reason for sign in _TOO_MUCH)
            raise GuideError(f"the guide's {kind} cannot be followed: {reason}", too_complex=hard)
        return matcher

    def _read_vocabulary(self) -> Any:
        """The tokenizer as llguidance reads it, from its JSON."""
        backend = copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return _llguidance().LLTokenizer(backend.to_str(), eos_token=self._eos_token_ids or None)

    @cached_property
    def _boxes(self) -> BoxTokens:
        try:
            return BoxTokens(self._tokenizer.get_vocab())
        except ConfigError as error:
            raise RequestError(f"the guide's boxes cannot be followed: {error}") from error


class Once:
    """What several threads want and one makes; who comes meanwhile waits. What raises is made anew by the next."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._lock, self._made = make, Lock(), []

    def value(self) -> Any:
        """It, made if nobody has."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


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
    """Follows one text, prompt and output: free outside ``<|det|>``, inside only what `boxes` allow."""

    error = ""

    def __init__(self, boxes: BoxTokens, vocabulary: int):
        self._boxes = boxes
        self._vocabulary = vocabulary
        self._inside: list[int] | None = None  # what follows the ``<|det|>`` that is still open
        self._read = 0

    def allowed(self, tokens: Sequence[int]) -> Tensor | None:
        for token in tokens[self._read :]:
            if token == self._boxes.open_id:
                self._inside = []
            elif token == self._boxes.close_id:
                self._inside = None
            elif self._inside is not None:
                self._inside.append(token)
        self._read = len(tokens)
        ids = None if self._inside is None else self._boxes.allowed(self._inside)
        if ids is None:
            return None
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        allowed[list(ids)] = True
        return allowed

    def ended(self, tokens: Sequence[int]) -> bool:
        return False


class BothGuides:
    """Follows a grammar, and boxes in what it leaves free."""

    def __init__(self, grammar: GrammarGuide, boxes: BoxGuide):
        self._grammar, self._boxes = grammar, boxes

    @property
    def error(self) -> str:
        return self._grammar.error

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        allowed, boxed = self._grammar.allowed(tokens), self._boxes.allowed(tokens)
        if boxed is None:
            return allowed
        both = min(len(allowed), len(boxed))
        return allowed[:both] & boxed[:both]

    def ended(self, tokens: Sequence[int]) -> bool:
        return self._grammar.ended(tokens)


_TOO_MUCH = ("too big", "too large", "too complex", "too many", "recursion limit", "limit for this grammar", "fuel")
"""What llguidance says of a guide that is beyond its limits."""
_KINDS = {"json_schema": "grammar_from_json_schema", "regex": "grammar_from_regex", "grammar": "grammar_from_lark"}


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise RequestError('guides need llguidance: pip install "modelwright[guide]"') from error
