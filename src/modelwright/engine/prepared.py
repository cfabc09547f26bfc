"""`Prepared`, a request that is checked and ready for the schedule, made in any thread; it waits for nothing yet."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

from modelwright.engine.params import SamplingParams
from modelwright.engine.prompt import Prompt
from modelwright.engine.request import Sample
from modelwright.engine.served_model import ServedModel


@dataclass(eq=False)
class Prepared:
    """What `Engine.prepare` makes and `Engine.add` takes, once.

    Attributes:
        given: the prompt as it was given; a model that has become another one meanwhile reads it again.
        prompt: its tokens and pictures.
        params: how it is continued.
        salt: tells a tenant apart, see `Sequence`.
        samples: one for each output, without names yet.
        model: what it was prepared for.
        context: how many tokens a sequence of that may have.
        taken: whether an engine has it already.
    """

    given: Any
    prompt: Prompt
    params: SamplingParams
    salt: str
    samples: SequenceOf[Sample]
    model: ServedModel
    context: int
    taken: bool = field(init=False, default=False)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the prompt, placeholders of pictures included."""
        return self.prompt.tokens

    @property
    def prompt_tokens(self) -> int:
        """How many those are."""
        return len(self.prompt.tokens)

    @property
    def largest(self) -> int:
        """How many tokens each output may have with the prompt: that many must fit into the pages."""
        return self.samples[0].sequence.limit
