"""Why an engine does not take a request, or lets it go: errors with names, for whoever answers them in its own way."""

from typing import Literal

from modelwright.errors import RequestError, RequestFailed

NOTHING_ALLOWED = "every token is forbidden here, by the guide, logit_bias, bad_words or min_tokens together"
"""Why an output cannot go on, where what was asked contradicts itself."""
QUEUE_FULL = "the engine is busy: {what} must be at most {limit}, and with this one they would be {found}"


class Contradictory(RequestFailed):
    """What a request asks leaves no token that could be drawn; it would fail again."""


class PromptTooLong(RequestError):
    """A prompt leaves no room in the model's context.

    Attributes:
        tokens: of the prompt.
        context: how many a sequence may have.
    """

    def __init__(self, tokens: int, context: int):
        super().__init__(
            f"the prompt is {tokens} tokens long and the model's context holds {context}, "
            "which leaves no room for an answer"
        )
        self.tokens, self.context = tokens, context


class LargerThanCache(RequestError):
    """A prompt and its new tokens together exceed all pages that there are, so it could never be served."""


class QueueFull(RequestError):
    """There are as many requests as may be served or wait, or their prompts are as long; later there is room again.

    Attributes:
        what: which limit it is.
    """

    def __init__(self, what: Literal["requests", "tokens"], limit: int, found: int):
        subject = "requests served or waiting" if what == "requests" else "tokens of prompts that wait"
        super().__init__(QUEUE_FULL.format(what=subject, limit=limit, found=found))
        self.what = what


class Closed(RequestError):
    """The engine takes no requests any more."""

    def __init__(self, message: str = "the engine is closed"):
        super().__init__(message)


class Draining(Closed):
    """The engine finishes what it has, and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the engine is shutting down: it finishes what it has and takes nothing new")


class Died(Closed):
    """The engine's thread has ended by itself, for the reason that is the error's cause."""


class TimedOut(RequestFailed):
    """A request was not served in the time that it was given.

    Attributes:
        waited: whether it had not even been started.
    """

    def __init__(self, seconds: float, waited: bool):
        super().__init__(
            f"the request was to be {'started' if waited else 'finished'} in {seconds:g} seconds, and was not"
        )
        self.waited = waited


class SlowReader(RequestFailed):
    """Nobody read what a request had to say, until it was too much to keep."""

    def __init__(self, size: int, limit: int):
        super().__init__(f"what waits to be read must be at most {limit} bytes, and {size} were not read")
