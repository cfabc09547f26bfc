"""`SampleRow`, one running sample as the sampler sees it, and what it is made from; nothing is sampled here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from modelwright.configs.field_types import cut
from modelwright.engine.noise import sample_key
from modelwright.engine.params import SamplingParams
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import RequestError


class TokenGuide(Protocol):
    """What an output must keep to, followed token by token."""

    @property
    def error(self) -> str:
        """Why it stopped following and allows nothing any more; empty where it goes on."""
        ...

    def allowed(self, tokens: Sequence[int]) -> Tensor | None:
        """Which tokens may follow `tokens`, bool on the CPU, ``[ids]``; None where all may. `tokens` only ever grow."""
        ...

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether nothing may follow `tokens` but the end."""
        ...

    def may_stop(self, tokens: Sequence[int]) -> bool:
        """Whether a stop text that `tokens` complete may end the output."""
        ...

    def may_end_by(self, token: int, tokens: Sequence[int]) -> bool:
        """Whether a token of ``stop_token_ids`` that follows `tokens` may end the output, as no part of it."""
        ...


class TokenHistory:
    """Which tokens a prompt holds and how often each occurs in the output, kept up as the output grows."""

    def __init__(self) -> None:
        self.prompt: Tensor | None = None
        self.counts: Counter[int] = Counter()
        self._read = 0

    def read(self, tokens: Sequence[int], prompt_length: int) -> None:
        """Take in what `tokens` has gained since the last call; a prompt's ids below zero stand for no token."""
        if self.prompt is None:
            self.prompt = torch.tensor(sorted({id_ for id_ in tokens[:prompt_length] if id_ >= 0}), dtype=torch.int64)
            self._read = prompt_length
        self.counts.update(tokens[self._read :])
        self._read = len(tokens)


@dataclass(eq=False)
class SampleRow:
    """One sample of a request, for as long as it runs.

    Attributes:
        params: how it is continued.
        tokens: the prompt and what was drawn; the sequence's own list, which grows between the steps.
        prompt_length: how many of them are the prompt's.
        key: of its noise, by `sample_key(seed, index)`.
        ends: tokens that end the output, not drawn before ``min_tokens``.
        bad_words: token sequences that are not completed.
        guide: what the output must keep to.
        fault: why no token can be drawn for it any more, where a guide failed.
    """

    params: SamplingParams
    tokens: Sequence[int]
    prompt_length: int
    key: int = sample_key(0)
    ends: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    guide: TokenGuide | None = None
    history: TokenHistory = field(init=False, default_factory=TokenHistory)
    fault: str | None = field(init=False, default=None)

    @cached_property
    def bias(self) -> tuple[Tensor, Tensor]:
        """The tokens of ``logit_bias`` ``[tokens]`` int64, and what is added to each ``[tokens]`` float32."""
        bias = self.params.logit_bias or {}
        return torch.tensor([*bias], dtype=torch.int64), torch.tensor([*bias.values()], dtype=torch.float32)

    @property
    def position(self) -> int:
        """The number of the output token that is drawn next, from 0."""
        return len(self.tokens) - self.prompt_length


def encode_bad_words(
    params: SamplingParams, ends: Iterable[int], tokenizer: Tokenizer | None, vocabulary: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """The token sequences of ``bad_words``, each text as it is written alone and after a space; no lone end token.

    Raises:
        RequestError: a word is text and there is no tokenizer, or the tokenizer makes nothing of it, or a token that
            a model with scores for `vocabulary` of them never draws.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        if not isinstance(word, str):
            found[word] = None
            continue
        if tokenizer is None:
            raise RequestError(f"bad_words as text need a tokenizer, and the engine has none; got {cut(word)}")
        ways = {tuple(tokenizer.encode(text, add_special_tokens=False)): None for text in (word, f" {word.lstrip()}")}
        if () in ways:
            raise RequestError(f"a bad word must be written in tokens, and the tokenizer makes none of {cut(word)}")
        highest = max(max(way) for way in ways)
        if vocabulary is not None and highest >= vocabulary:
            raise RequestError(
                f"a bad word must be written in tokens below the vocabulary's {vocabulary}, and {cut(word)} needs "
                f"token {highest}"
            )
        found |= ways
    lone_ends = {(id_,) for id_ in ends}
    return tuple(word for word in found if word not in lone_ends)
