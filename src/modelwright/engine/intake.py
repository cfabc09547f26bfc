"""`Intake`, from what a caller asks to a `Request` for the schedule: all is checked here, and nothing is run."""

import random
from collections.abc import Collection, Iterable
from typing import Any

from modelwright.engine.detokenize import Detokenizer
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.noise import sample_key
from modelwright.engine.output import OutputStream
from modelwright.engine.params import SamplingParams
from modelwright.engine.prompt import Prompt, read_prompt
from modelwright.engine.request import Request, Sample
from modelwright.engine.sample_row import SampleRow, TokenGuide, encode_bad_words
from modelwright.engine.sequence import Sequence
from modelwright.engine.served_model import ServedModel
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import RequestError

_CONTEXT_OF_TEXT = 8
"""How many of the prompt's last tokens say how the text goes on."""


class Intake:
    """Makes the requests to one model.

    Args:
        served: the model.
        tokenizer: None where prompts are ids and outputs have no text.
        context: how many tokens a sequence may have.

    Attributes:
        ends: the tokens that end an output, where a request names none: the model's and the tokenizer's.
    """

    def __init__(self, served: ServedModel, tokenizer: Tokenizer | None, context: int):
        self._served, self._tokenizer, self._context = served, tokenizer, context
        self.ends = end_tokens(served.ends, tokenizer)
        self._marks = _marks_of(tokenizer)
        self._guides = GuideCompiler(tokenizer, self.ends) if tokenizer is not None else None
        self._seeds = random.Random()

    def request(self, name: str, prompt: Any, params: SamplingParams, priority: int) -> Request:
        """A request with a sample for each of its outputs.

        Raises:
            RequestError: it cannot be served: too long, a token beyond the vocabulary, a guide that cannot be followed.
        """
        parsed = read_prompt(prompt, self._tokenizer, self._served)
        self._check(parsed, params)
        room = params.room(len(parsed.tokens), self._context)
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        ends = params.ends(self.ends)
        words = encode_bad_words(params, ends, self._tokenizer, self._served.draws)
        samples = []
        for index in range(params.n):
            sequence = self._sequence(name, index, parsed, params, room, priority)
            key, guide = sample_key(seed, index), self._guide(parsed, params)
            row = SampleRow(params, sequence.tokens, len(parsed.tokens), key, ends, words, guide)
            stream = OutputStream(params, room, ends, self._detokenizer(parsed, params, ends))
            samples.append(Sample(index, sequence, row, stream))
        return Request(name, parsed, params, samples)

    def _check(self, prompt: Prompt, params: SamplingParams) -> None:
        known = self._served.reads
        for token in prompt.tokens:
            if not 0 <= token < known:
                raise RequestError(
                    f"a prompt's tokens must be at least 0 and below the vocabulary's {known}, got {token}"
                )
        params.check_vocabulary(self._served.draws)

    def _sequence(
        self, name: str, index: int, prompt: Prompt, params: SamplingParams, room: int, priority: int
    ) -> Sequence:
        """The prompt is read for the first sample; only there are its own logits wanted."""
        return Sequence(
            id=name if index == 0 else f"{name}#{index}",
            prompt=prompt.tokens,
            max_tokens=room,
            keys=prompt.keys if prompt.pictures else (),
            salt=self._salt(len(prompt.tokens)),
            priority=priority,
            prompt_logprobs=params.prompt_logprobs is not None and index == 0,
        )

    def _salt(self, length: int) -> str:
        """What else than tokens keys depend on: beyond the trained length, on how long the prompt was."""
        trained = self._served.trained_length
        return f"rotated by {length} tokens" if trained is not None and length > trained else ""

    def _guide(self, prompt: Prompt, params: SamplingParams) -> TokenGuide | None:
        if params.guide is None:
            return None
        if self._guides is None:
            raise RequestError("a guide needs a tokenizer, and the engine has none")
        return self._guides.start(params.guide, len(prompt.tokens))

    def _detokenizer(self, prompt: Prompt, params: SamplingParams, ends: Collection[int]) -> Detokenizer | None:
        if self._tokenizer is None:
            return None
        return Detokenizer(
            self._tokenizer,
            context=prompt.tokens[-_CONTEXT_OF_TEXT:],
            hidden=self._marks.difference(ends),  # whether an end is shown is a question of its own
            skip_special_tokens=params.skip_special_tokens,
        )


def end_tokens(of_model: Iterable[int], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ends of sentence of a model and its tokenizer: those of the generation config, and the tokenizer's own."""
    end = None if tokenizer is None else tokenizer.eos_token_id
    return tuple(dict.fromkeys([*of_model, *(() if end is None else (end,))]))


def _marks_of(tokenizer: Tokenizer | None) -> frozenset[int]:
    """The beginning of a text and padding, which are no text even where special tokens are kept in it."""
    marks = () if tokenizer is None else (tokenizer.bos_token_id, tokenizer.pad_token_id)
    return frozenset(id_ for id_ in marks if id_ is not None)
