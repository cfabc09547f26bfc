"""`Intake`, from what a caller asks to a `Prepared` for the schedule: all is checked here, and nothing is run."""

import random
from collections.abc import Collection, Iterable
from typing import Any

from modelwright.engine.detokenize import Detokenizer
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.noise import sample_key
from modelwright.engine.output import OutputStream
from modelwright.engine.params import SamplingParams
from modelwright.engine.prepared import Prepared
from modelwright.engine.prompt import Prompt, read_prompt
from modelwright.engine.request import Sample
from modelwright.engine.sample_row import SampleRow, TokenGuide, encode_bad_words
from modelwright.engine.sequence import Sequence
from modelwright.engine.served_model import ServedModel
from modelwright.engine.tokenizer import Tokenizer, settle
from modelwright.errors import RequestError
from modelwright.processing.marks import end_tokens

_CONTEXT_OF_TEXT = 8
"""How many of the prompt's last tokens say how the text goes on."""


class Intake:
    """Makes the requests to one model, in any number of threads at once.

    Args:
        served: the model.
        tokenizer: None where prompts are ids and outputs have no text.
        context: how many tokens a sequence may have.
        guides: what compiled guides for the same tokenizer and ends before; by default a new compiler.
        more_ends: tokens that end an output besides the model's and the tokenizer's.

    Attributes:
        ends: the tokens that end an output, where a request names none.
    """

    def __init__(
        self,
        served: ServedModel,
        tokenizer: Tokenizer | None,
        context: int,
        guides: GuideCompiler | None = None,
        more_ends: Iterable[int] = (),
    ):
        self.served, self.context = served, context
        self._tokenizer = tokenizer
        self._more_ends = tuple(more_ends)
        self.ends = end_tokens(served.ends, tokenizer, self._more_ends)
        self._marks = _marks_of(tokenizer)
        self._guides = guides or (GuideCompiler(tokenizer, self.ends) if tokenizer is not None else None)
        self._seeds = random.Random()
        if tokenizer is not None:
            settle(tokenizer)

    def renewed(self, served: ServedModel, context: int) -> "Intake":
        """For a model that has become another one; guides that were compiled stay where they are the same."""
        same = end_tokens(served.ends, self._tokenizer, self._more_ends) == self.ends
        return Intake(served, self._tokenizer, context, self._guides if same else None, self._more_ends)

    def prepare(self, given: Any, params: SamplingParams, salt: str = "") -> Prepared:
        """A request with a sample for each of its outputs.

        Raises:
            RequestError: it cannot be served: too long, a token beyond the vocabulary, a guide that cannot be followed.
        """
        prompt = read_prompt(given, self._tokenizer, self.served)
        self._check(prompt, params)
        room = params.room(len(prompt.tokens), self.context)
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        ends = params.ends(self.ends)
        words = encode_bad_words(params, ends, self._tokenizer, self.served.draws)
        unseen = _unseen_stops(params, self._tokenizer)
        keys = prompt.keys if prompt.pictures else ()
        samples = []
        for index in range(params.n):
            sequence = Sequence(
                id="",
                prompt=prompt.tokens,
                max_tokens=room,
                keys=keys,
                salt=salt + self._rotation(len(prompt.tokens)),
                prompt_logprobs=params.prompt_logprobs is not None and index == 0,  # the prompt is read for the first
            )
            key, guide = sample_key(seed, index), self._guide(prompt, params)
            row = SampleRow(params, sequence.tokens, len(prompt.tokens), key, ends, words, guide)
            stream = OutputStream(params, room, ends, self._detokenizer(prompt, params, ends), unseen)
            samples.append(Sample(index, sequence, row, stream))
        return Prepared(given, prompt, params, salt, samples, self.served, self.context)

    def _check(self, prompt: Prompt, params: SamplingParams) -> None:
        known = self.served.reads
        if prompt.tokens and not (min(prompt.tokens) >= 0 and max(prompt.tokens) < known):
            token = next(token for token in prompt.tokens if not 0 <= token < known)
            raise RequestError(f"a prompt's tokens must be at least 0 and below the vocabulary's {known}, got {token}")
        params.check_vocabulary(self.served.draws)

    def _rotation(self, length: int) -> str:
        """What else than tokens keys depend on: beyond the trained length, on how long the prompt was."""
        trained = self.served.trained_length
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


def _marks_of(tokenizer: Tokenizer | None) -> frozenset[int]:
    """The beginning of a text and padding, which are no text even where special tokens are kept in it."""
    marks = () if tokenizer is None else (tokenizer.bos_token_id, tokenizer.pad_token_id)
    return frozenset(id_ for id_ in marks if id_ is not None)


def _unseen_stops(params: SamplingParams, tokenizer: Tokenizer | None) -> dict[int, str]:
    """The stop texts that are a special token each, by that token, where special tokens are left out of the text."""
    if tokenizer is None or not params.stop or not params.skip_special_tokens:
        return {}
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {id_: token.content for id_, token in added.items() if token.special and token.content in params.stop}
