"""`Roster`, the requests that an engine serves, by their ids, and their samples by the ids of their sequences."""

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from modelwright.configs.field_types import shown
from modelwright.engine.prepared import Prepared
from modelwright.engine.prompt import PromptPicture
from modelwright.engine.request import Request, Sample
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Step
from modelwright.errors import RequestError


class Roster:
    """Those that have not ended, in the order in which they came."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._samples: dict[str, tuple[Request, Sample]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def __contains__(self, id: str) -> bool:
        return id in self._requests

    def __getitem__(self, id: str) -> Request:
        return self._requests[id]

    def name(self, asked: Any) -> str:
        """The name of a further request: the one asked for, or a new one.

        Raises:
            RequestError: it is no text, or another request's.
        """
        if not isinstance(asked, str | None):
            raise RequestError(f"a request's id must be text, got {shown(asked)}")
        if asked is None:
            return next(name for number in self._numbers if (name := f"request-{number}") not in self._requests)
        if asked in self._requests:
            raise RequestError(f"a request needs an id of its own, {asked!r} is being served")
        return asked

    def add(self, name: str, prepared: Prepared, arrived: float | None) -> Request:
        """Let a request be served; its sequences have their names already."""
        request = Request(name, prepared.prompt, prepared.params, prepared.samples)
        request.arrived = request.arrived if arrived is None else arrived
        self._requests[name] = request
        self._samples |= {own.sequence.id: (request, own) for own in request.samples}
        return request

    def drop(self, request: Request) -> None:
        """One has ended."""
        del self._requests[request.id]
        for own in request.samples:
            del self._samples[own.sequence.id]

    def sample(self, sequence: str) -> tuple[Request, Sample]:
        """Whose a sequence is, by its id."""
        return self._samples[sequence]

    def goals(self, step: Step) -> dict[Request, dict[Sequence, int]]:
        """The requests of a step, and how many tokens of each of their sequences are computed once it is done."""
        found: dict[Request, dict[Sequence, int]] = {}
        for chunk in step.chunks:
            found.setdefault(self._samples[chunk.sequence.id][0], {})[chunk.sequence] = chunk.end
        return found

    def begin(self, step: Step) -> list[Request]:
        """Note the requests that a step begins with, and give them."""
        begun = [request for request in self.goals(step) if request.scheduled is None]
        for request in begun:
            request.scheduled = time.monotonic()
        return begun

    def pictures(self, step: Step) -> dict[str, tuple[PromptPicture, ...]]:
        """The pictures of the sequences of a step that have any."""
        prompts = {chunk.sequence.id: self._samples[chunk.sequence.id][0].prompt for chunk in step.chunks}
        return {id_: prompt.pictures for id_, prompt in prompts.items() if prompt.pictures}
