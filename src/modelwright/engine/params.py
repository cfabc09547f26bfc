"""What a request may ask of the sampler, checked when it is built; nothing is sampled here."""

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from modelwright.configs.field_types import cut, describe, fits, plain, shown
from modelwright.configs.limits import COLDEST, LARGEST_FLOAT, check_sampling
from modelwright.configs.sampling import SamplingSettings
from modelwright.engine.generation_config import read_generation_config
from modelwright.engine.refusals import PromptTooLong
from modelwright.errors import GuideError, RequestError

MOST_BAD_WORDS = 4096
"""Each is compared with the end of an output at every step."""
MOST_WORDS = 100_000
"""Characters or ids of all bad words together, which are written in tokens before the request begins."""
MOST_TEXT = 10_000
"""Characters of all stop texts together, which are looked for in each piece of an output."""
GUIDE_KINDS = ("json_schema", "regex", "grammar", "boxes")
"""What a guide may hold an output to."""
MOST_SECONDS = 600
"""In which a guide may be compiled."""


@dataclass(frozen=True)
class Guide:
    """What an output must keep to: one of the first three, boxes, or one of the three and boxes.

    Attributes:
        json_schema: a JSON schema, as text or as a dict (kept as text); ``{}`` is any JSON.
        regex: a regular expression in Rust's syntax, which the whole output matches.
        grammar: a context-free grammar in llguidance's variant of Lark, with a rule named ``start``.
        boxes: after ``<|det|>`` only well-formed boxes; alone it leaves the rest of the output free.
        stops: stop texts and ids end the output too, wherever it satisfies the schema, expression or grammar; what is
            left after a stop text was cut off may not. Otherwise they do not count. With boxes alone they always do,
            between boxes.
        timeout: seconds of processor time in which the guide must be compiled.

    Raises:
        RequestError: none or two of the first three are given, or the schema is not JSON. Whether a schema, expression
            or grammar can be followed is found out where it is compiled.
    """

    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    boxes: bool = False
    stops: bool = False
    timeout: float = 5.0

    def __post_init__(self) -> None:
        given = [name for name in GUIDE_KINDS if self._gives(name)]
        _require(bool(given), "a guide must be one of json_schema, regex, grammar, boxes", "none")
        texts = [name for name in given if name != "boxes"]
        _require(len(texts) < 2, "a guide must be one of json_schema, regex, grammar", texts)
        for name in ("boxes", "stops"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"a guide's {name} must be True or False", cut(value))
        number = isinstance(self.timeout, int | float) and not isinstance(self.timeout, bool)
        sound = number and 0 < self.timeout <= MOST_SECONDS
        _require(sound, f"a guide's timeout must be above 0 and at most {MOST_SECONDS} seconds", cut(self.timeout))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, str), f"a guide's {name} must be text", cut(value))
            _require(value is None or is_text(value), f"a guide's {name} must be text in UTF-8", cut(value))

    def _gives(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued. Names and meanings are those of vLLM and transformers, where they have them.

    Attributes:
        max_tokens: how many new tokens at most; None for up to `max_length` or the end of the model's context. 0 only
            reads the prompt: for its log-probabilities, or to have it in the cache.
        max_length: how many tokens at most, the prompt's included; `max_tokens` wins where both are given.
        min_tokens: end tokens are not drawn, and stop strings do not count, before so many new tokens.
        temperature: what scores are divided by; 0 (anything below 1e-5) takes the best token.
        top_k: sample from the k best tokens, and those as good as the k-th; 0 or -1 (vLLM's way to say so) keeps all.
        top_p: sample from the fewest best tokens that reach this probability, the one that crosses it included.
        min_p: sample from tokens at least so probable, as a fraction of the best one's probability.
        repetition_penalty: divides positive and multiplies negative scores of tokens in prompt or output.
        presence_penalty: subtracted from the scores of tokens in the output.
        frequency_penalty: subtracted from the scores of tokens in the output, once for each occurrence.
        logit_bias: token id to what is added to its score; ``-inf`` forbids it.
        bad_words: words (text) or token sequences that are not written; a lone end token is not forbidden.
        stop: texts that end the output, special tokens among them; they are cut off unless
            `include_stop_str_in_output`.
        stop_token_ids: tokens that end the output, besides the end of sentence, even with `ignore_eos`.
        eos_token_ids: the ends of sentence; None for the model's own and the tokenizer's.
        ignore_eos: go on after the end of sentence.
        include_stop_str_in_output: keep the stop text, or the token that ended the output.
        n: how many outputs; each has its own noise, derived from `seed`.
        seed: a seeded output draws the same from the same scores, whatever runs beside it; None draws a seed.
        logprobs: report each new token's log-probability and so many best alternatives; None for none.
        prompt_logprobs: the same for the prompt's tokens.
        guide: what the output must keep to.
        skip_special_tokens: leave special tokens out of the text.

    Raises:
        RequestError: a value has the wrong type or breaks a rule; the message names the rule and the value.
    """

    max_tokens: int | None = None
    max_length: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guide: Guide | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, expected in _annotations().items():
            given = getattr(self, name)
            if given is getattr(SamplingParams, name):  # as most are: the default keeps every rule
                continue
            value = plain(_in_tuples(name, given), expected)
            if type(value) is int:
                check_sampling({name: value})  # its range says more than that it has too many bits
            if not fits(value, expected):
                sentence = f"{name} must be {describe(expected)}, got {shown(value)}"
                raise RequestError(sentence, field=name)
            object.__setattr__(self, name, value)
        self._check_ranges()
        self._check_biases()
        self._check_tokens()

    @classmethod
    def from_settings(cls, settings: SamplingSettings, **changes: Any) -> Self:
        """A config's defaults (its ``sampling`` view), with `changes` in their place."""
        defaults = {
            "temperature": 1.0 if settings.do_sample else 0.0,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "repetition_penalty": settings.repetition_penalty,
            "max_length": settings.max_decode_length,
            "eos_token_ids": settings.eos_token_ids,
        }
        return cls(**defaults | changes)

    @classmethod
    def from_generation_config(cls, config: Any, **changes: Any) -> Self:
        """What ``generate()`` does with `config`, transformers' ``GenerationConfig``, with `changes` in its place.

        Raises:
            RequestError: `config` asks for what the engine does not do, such as beams.
        """
        return cls(**read_generation_config(config) | changes)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < COLDEST

    def room(self, prompt_tokens: int, context: int) -> int:
        """How many tokens may follow a prompt of `prompt_tokens`, in a model whose context holds `context`.

        Raises:
            RequestError: there is no room for one, or for the prompt itself where no token is asked for.
        """
        if prompt_tokens >= context + (self.max_tokens == 0):
            raise PromptTooLong(prompt_tokens, context)
        if self.max_tokens is not None:
            return min(self.max_tokens, context - prompt_tokens)
        if self.max_length is not None and prompt_tokens >= self.max_length:
            raise RequestError(f"max_length ({self.max_length}) must be above the prompt's {prompt_tokens} tokens")
        return min(self.max_length or context, context) - prompt_tokens

    def ends(self, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
        """The tokens that end an output of a model whose ends of sentence are `eos_token_ids`."""
        eos = eos_token_ids if self.eos_token_ids is None else self.eos_token_ids
        return frozenset(self.stop_token_ids) | frozenset(() if self.ignore_eos else eos)

    def check_vocabulary(self, size: int) -> None:
        """Raise a RequestError where a token is named that a vocabulary of `size` does not hold."""
        words = [id_ for word in self.bad_words if not isinstance(word, str) for id_ in word]
        named = {"logit_bias": self.logit_bias or (), "stop_token_ids": self.stop_token_ids, "bad_words": words}
        for name, ids in named.items():
            highest = max(ids, default=0)
            _require(highest < size, f"{name} must name tokens below the vocabulary's {size}", highest, name)

    def _check_ranges(self) -> None:
        check_sampling(vars(self))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            said = f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens})"
            raise RequestError(said, field="min_tokens")

    def _check_biases(self) -> None:
        for id_, bias in (self.logit_bias or {}).items():
            _require(fits(id_, int) and id_ >= 0, "logit_bias must name tokens by their ids", cut(id_), "logit_bias")
            number = isinstance(bias, int | float) and not isinstance(bias, bool)
            usable = number and (bias == -math.inf or abs(bias) <= LARGEST_FLOAT)  # false for nan
            rule = f"a number from {-LARGEST_FLOAT:g} to {LARGEST_FLOAT:g}, or -inf"
            _require(usable, f"logit_bias of token {id_} must be {rule}", cut(bias), "logit_bias")

    def _check_tokens(self) -> None:
        for text in self.stop:
            _require(text != "", "a stop text must not be empty", repr(text))
            _require(is_text(text), "a stop text must be text in UTF-8", cut(text))
        length = sum(map(len, self.stop))
        _require(length <= MOST_TEXT, f"stop must hold at most {MOST_TEXT} characters in all", length)
        words = len(self.bad_words)
        _require(words <= MOST_BAD_WORDS, f"bad_words must be at most {MOST_BAD_WORDS}", words)
        length = sum(map(len, self.bad_words))
        _require(length <= MOST_WORDS, f"bad_words must hold at most {MOST_WORDS} characters or ids in all", length)
        for word in self.bad_words:
            _require(len(word) > 0, "a bad word must not be empty", repr(word))
            if isinstance(word, str):
                _require(is_text(word), "a bad word must be text in UTF-8", cut(word))
            else:
                _require(min(word) >= 0, "a bad word's ids must be at least 0", cut(word))
        for name in ("stop_token_ids", "eos_token_ids"):
            lowest = min(getattr(self, name) or (0,))
            _require(lowest >= 0, f"{name} must be at least 0", lowest, name)


@cache
def _annotations() -> dict[str, Any]:
    """What each field must be."""
    return inspect.get_annotations(SamplingParams, eval_str=True)


def is_text(value: object) -> bool:
    """Whether `value` is text that can be written in UTF-8, as tokenizers read it: without half of a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _require(holds: bool, rule: str, value: object, field: str | None = None) -> None:
    if not holds:
        raise RequestError(f"{rule}, got {value}", field=field)


def _in_tuples(name: str, value: Any) -> Any:
    """Lists as the tuples that are kept, a lone stop text as one, a mapping as a dict of our own."""
    if name == "stop" and (value is None or isinstance(value, str)):
        return () if value is None else (value,)
    if name in ("bad_words", "eos_token_ids") and isinstance(value, list | tuple):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return dict(value) if isinstance(value, Mapping) else value


def _schema_text(schema: str | dict[str, Any]) -> str:
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        return json.dumps(parsed)  # in the order given: properties are written in it
    except RecursionError as error:
        raise GuideError("a guide's json_schema must not be so deep", too_complex=True) from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"a guide's json_schema must be JSON, got {cut(schema)}: {error}") from error
