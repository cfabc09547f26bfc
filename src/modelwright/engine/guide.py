"""Guides: JSON schemas, expressions and grammars through llguidance, boxes through `processing`; they sample nothing.

llguidance is optional (``pip install "modelwright[guide]"``) and imported when the first such guide is compiled.
"""

import json
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property, lru_cache
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.engine.bounded import Bounded, TookTooLong, TooManyLeft
from modelwright.engine.params import Guide
from modelwright.engine.sample_row import TokenGuide
from modelwright.engine.schema import enforced_schema
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import ConfigError, GuideError, RequestError
from modelwright.processing.box_tokens import BoxTokens

_KEPT_GRAMMARS = 256
STEP_SECONDS = 0.05
"""Of processor time that a guide may take for one token: the tokens of others wait for it."""


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
        self._kept = lru_cache(_KEPT_GRAMMARS)(self._once)
        self._vocabulary = Once(self._read_vocabulary)
        self._masks = Bounded("modelwright-guide-masks")

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
        kept = self._kept(written, getattr(guide, written))
        matcher = kept.value(guide.timeout).deep_copy()
        grammar = GrammarGuide(matcher, prompt_length, self._masks, self._eos_token_ids, guide.stops, kept.forget)
        return grammar if boxes is None else BothGuides(grammar, boxes)

    def _once(self, kind: str, text: str) -> "Once":
        late: list[float] = []  # the seconds that were not enough: nobody tries again in as many
        refused: list[GuideError] = []  # what it is refused for, whoever asks again

        def make(seconds: float) -> Any:
            if refused:
                raise GuideError(str(refused[0]), too_complex=refused[0].too_complex)
            if late and seconds <= late[-1]:
                raise _too_slow(kind, seconds)
            try:
                return self._compile_within(kind, text, seconds)
            except TookTooLong as error:
                late.append(seconds)
                raise _too_slow(kind, seconds) from error
            except TooManyLeft as error:
                reason = "other guides that took too long are still being worked on; ask again later"
                raise _refusal(kind, reason, too_complex=True) from error
            except GuideError as error:
                refused.append(error)
                raise

        return Once(make)

    def _compile_within(self, kind: str, text: str, seconds: float) -> Any:
        self._vocabulary.value()  # which takes its time once, whatever the guide
        worker = Bounded("modelwright-guide", limited=True)
        try:
            return worker.run(lambda: self._compile(kind, text), seconds)
        finally:
            worker.close()

    def _compile(self, kind: str, text: str) -> Any:
        """A matcher at the beginning of a guide, to be copied."""
        matchers = _llguidance().LLMatcher
        try:
            grammar = getattr(matchers, _KINDS[kind])(
                json.dumps(enforced_schema(json.loads(text))) if kind == "json_schema" else text
            )
        except ValueError as error:
            hard = isinstance(error, GuideError) and error.too_complex
            raise _refusal(kind, str(error), too_complex=hard) from error
        limits = _llguidance().LLParserLimits(verbose_errors=False)
        matcher = matchers(self._vocabulary.value(), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the one that builds most, and copies keep what was built
        if matcher.is_error():
            reason = matcher.get_error().removesuffix("<non-verbose/>").strip()
            reason = "no text satisfies it" if reason.startswith("NoExtension") else reason
            raise _refusal(kind, reason, too_complex=any(sign in reason.lower() for sign in _TOO_MUCH))
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


def schema_fault(schema: str) -> str:
    """What llguidance says against a schema, as JSON with `enforced_schema`'s options; empty where it takes it."""
    matchers = _llguidance().LLMatcher
    limits = _llguidance().LLParserLimits(verbose_errors=False)
    return matchers.validate_grammar(matchers.grammar_from_json_schema(schema), limits=limits).strip()


class Once:
    """What several threads want and one makes; who comes meanwhile waits. What raises is made anew by the next."""

    def __init__(self, make: Callable[..., Any]):
        self._make, self._lock, self._made = make, Lock(), []

    def value(self, *how: Any) -> Any:
        """It, made if nobody has."""
        with self._lock:
            if not self._made:
                self._made.append(self._make(*how))
            return self._made[0]

    def forget(self) -> None:
        """Let it be made anew for whoever asks next."""
        with self._lock:
            self._made.clear()


class GrammarGuide:
    """Follows one output with an llguidance matcher of its own.

    Args:
        matcher: at the beginning.
        prompt_length: how many tokens come before the output.
        masks: where masks are computed, so that one that takes too long holds up nobody else.
        ends: the tokens that end it where it is satisfied.
        stops: whether stop texts and ids end the output too.
        broken: called where llguidance panics, after which no copy of the matcher can be followed.
    """

    def __init__(
        self,
        matcher: Any,
        prompt_length: int,
        masks: Bounded,
        ends: Sequence[int],
        stops: bool,
        broken: Callable[[], None],
    ):
        self._matcher = matcher
        self._read = prompt_length
        self._masks, self._ends, self._stops, self._broken = masks, list(ends), stops, broken
        self._late = ""

    @property
    def error(self) -> str:
        """Why it stopped following, for instance at a limit of llguidance; then it allows nothing. Else empty."""
        reason = self._late or self._matcher.get_error().removesuffix("<non-verbose/>").strip()
        return "llguidance panicked" if "panic" in reason else reason

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        self._follow(tokens)
        words = b"" if self.error else self._mask()
        allowed = torch.from_numpy(np.unpackbits(np.frombuffer(words, dtype=np.uint8), bitorder="little")).bool()
        if words and not self._matcher.is_accepting():
            allowed[self._ends] = False  # one that is plain text, too, would end the output before it is whole
        return allowed

    def ended(self, tokens: Sequence[int]) -> bool:
        self._follow(tokens)
        return not self.error and self._matcher.is_stopped()

    def may_stop(self, tokens: Sequence[int]) -> bool:
        self._follow(tokens)
        return self._stops and not self.error and self._matcher.is_accepting()

    def may_end_by(self, token: int, tokens: Sequence[int]) -> bool:
        return token in self._ends or self.may_stop(tokens)

    def _mask(self) -> bytes:
        try:
            words = self._masks.run(self._matcher.compute_bitmask, STEP_SECONDS)
        except (TookTooLong, TooManyLeft):
            self._late = _LATE
            return b""
        return b"" if self._fails() else words

    def _follow(self, tokens: Sequence[int]) -> None:
        """llguidance keeps the interpreter's lock here, and its limits keep this short; what was long is the last."""
        if self._read < len(tokens) and not self.error:
            begun = time.thread_time()
            self._matcher.consume_tokens(list(tokens[self._read :]))
            if not self._fails() and time.thread_time() - begun > STEP_SECONDS * (len(tokens) - self._read):
                self._late = _LATE
        self._read = len(tokens)

    def _fails(self) -> bool:
        """Whether the matcher stopped following; a panic leaves a lock of all its copies behind, held for good."""
        failing: bool = self._matcher.is_error()
        if failing and "panic" in self._matcher.get_error():
            self._broken()
        return failing


class BoxGuide:
    """Follows one text, prompt and output: free outside ``<|det|>``, inside only what `boxes` allow."""

    error = ""

    def __init__(self, boxes: BoxTokens, vocabulary: int):
        self._boxes = boxes
        self._vocabulary = vocabulary
        self._inside: list[int] | None = None  # what follows the ``<|det|>`` that is still open
        self._read = 0

    def allowed(self, tokens: Sequence[int]) -> Tensor | None:
        self._follow(tokens)
        ids = None if self._inside is None else self._boxes.allowed(self._inside)
        if ids is None:
            return None
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        allowed[list(ids)] = True
        return allowed

    def ended(self, tokens: Sequence[int]) -> bool:
        return False

    def may_stop(self, tokens: Sequence[int]) -> bool:
        self._follow(tokens)
        return self._inside is None

    def may_end_by(self, token: int, tokens: Sequence[int]) -> bool:
        return token == self._boxes.close_id or self.may_stop(tokens)

    def _follow(self, tokens: Sequence[int]) -> None:
        for token in tokens[self._read :]:
            if token == self._boxes.open_id:
                self._inside = []
            elif token == self._boxes.close_id:
                self._inside = None
            elif self._inside is not None:
                self._inside.append(token)
        self._read = len(tokens)


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

    def may_stop(self, tokens: Sequence[int]) -> bool:
        return self._grammar.may_stop(tokens) and self._boxes.may_stop(tokens)

    def may_end_by(self, token: int, tokens: Sequence[int]) -> bool:
        return self._grammar.may_end_by(token, tokens) and self._boxes.may_end_by(token, tokens)


_LATE = f"it took longer than {STEP_SECONDS * 1000:g} ms for one token"


_TOO_MUCH = ("too big", "too large", "too complex", "too many", "recursion limit", "limit for this grammar", "fuel")
"""What llguidance says of a guide that is beyond its limits."""
_KINDS = {"json_schema": "grammar_from_json_schema", "regex": "grammar_from_regex", "grammar": "grammar_from_lark"}


def _refusal(kind: str, reason: str, too_complex: bool) -> GuideError:
    return GuideError(f"the guide's {kind} cannot be followed: {reason}", too_complex=too_complex)


def _too_slow(kind: str, seconds: float) -> GuideError:
    return _refusal(kind, f"it takes longer than {seconds:g} seconds to compile", too_complex=True)


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise RequestError('guides need llguidance: pip install "modelwright[guide]"') from error
