"""Frames of a stream of server-sent events: what is the same in each is encoded once, a text costs its escape."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from modelwright.server.answers import deltas
from modelwright.server.events import Event, Text
from modelwright.server.wire import chat
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.usage import Timings, Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_encode = msgspec.json.Encoder().encode
_MARK = "\ufdd0"


def event(value: Any) -> bytes:
    """One frame."""
    return b"data: " + _encode(value) + b"\n\n"


def error_frames(error: ApiError) -> bytes:
    """The end of a stream that failed after its headers."""
    return b"data: " + error.body() + b"\n\n" + DONE


class ChatFrames:
    """The frames of one chat answer.

    Args:
        id, created, model, fingerprint: what every frame says.
        with_usage: frames have the key `usage`, null but in the last one.
        continuous: every frame says the usage so far.
    """

    def __init__(self, id: str, created: int, model: str, fingerprint: str, with_usage: bool, continuous: bool = False):
        self._same: dict[str, Any] = {
            "id": id, "created": created, "model": model, "system_fingerprint": fingerprint
        }  # fmt: skip
        self._usage: Any = None if with_usage else UNSET
        self._continuous = continuous
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def role(self, index: int) -> bytes:
        """The first frame of an answer."""
        return self._frame(chat.ChunkChoice(index, chat.Delta(role="assistant", content="")))

    def pieces(
        self, index: int, events: Sequence[Event], told: list[chat.TokenLogprob] | None, usage: Callable[[], Usage]
    ) -> bytes:
        """What some events add; log-probabilities stand in the first frame of them.

        Args:
            usage: tells the usage so far, where frames say it.
        """
        found = b""
        if told and not events:
            events = [Text("")]
        for number, each in enumerate(events):
            if isinstance(each, Text) and not told and not self._continuous:
                head, tail = self._constant(index)
                found += head + _encode(each.text) + tail
                continue
            logprobs = chat.ChoiceLogprobs(told) if told and number == 0 else None
            for delta in deltas([each]):
                found += self._frame(chat.ChunkChoice(index, delta, logprobs), usage() if self._continuous else None)
        return found

    def finish(self, index: int, reason: str, stop: str | int | None, usage: Usage, timings: Any = UNSET) -> bytes:
        """The last frame of an answer."""
        choice = chat.ChunkChoice(index, chat.Delta(), None, reason, stop)
        return self._frame(choice, usage, timings=timings)

    def usage(self, usage: Usage, timings: Timings | Any = UNSET) -> bytes:
        """The frame without a choice, which tells what all answers took."""
        return event(chat.ChatChunk(**self._same, choices=[], usage=usage, timings=timings))

    def prompt(self, index: int, logprobs: Any) -> bytes:
        """The frame that tells what the model thought of the prompt."""
        choices = [chat.ChunkChoice(index, chat.Delta(content=""))]
        return event(chat.ChatChunk(**self._same, choices=choices, usage=self._usage, prompt_logprobs=logprobs))

    def progress(self, progress: dict[str, Any]) -> bytes:
        """A frame without a choice, while nothing is drawn yet."""
        return event(chat.ChatChunk(**self._same, choices=[], usage=self._usage, progress=progress))

    def _frame(self, choice: chat.ChunkChoice, usage: Usage | None = None, timings: Any = UNSET) -> bytes:
        said = usage if self._continuous and usage is not None else self._usage
        return event(chat.ChatChunk(**self._same, choices=[choice], usage=said, timings=timings))

    def _constant(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text of a frame that says nothing else."""
        if index not in self._around:
            whole = self._frame(chat.ChunkChoice(index, chat.Delta(content=_MARK)))
            head, _, tail = whole.partition(_encode(_MARK))
            self._around[index] = head, tail
        return self._around[index]
