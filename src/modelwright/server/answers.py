"""An answer as it grows: updates of the engine to events and log-probabilities, and in the end to OpenAI's choice."""

import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import UNSET

from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.output import FinishReason
from modelwright.engine.results import Completion, Update
from modelwright.server.events import CallArguments, CallStart, Event, Grounded, NotGrounded, Reasoning, Row, Text
from modelwright.server.reasoning import ThinkReader
from modelwright.server.token_texts import TokenTexts
from modelwright.server.wire import chat
from modelwright.server.wire.errors import ApiError

_LETTERS = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    """An id that nobody else has: `prefix` and 22 characters."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(22))


class Answer:
    """One of the answers to a request.

    Args:
        index: which of its `n`.
        row: what the text passes on its way.
        texts: of tokens, where log-probabilities are told.
        top: how many alternatives are told of each token.
        thinks: the reader in `row` that parts thoughts, where there is one.

    Attributes:
        tokens, thought_tokens: drawn so far; those of thoughts are among the former. An update is counted as a whole.
    """

    def __init__(
        self, index: int, row: Row, texts: TokenTexts | None = None, top: int = 0, thinks: ThinkReader | None = None
    ):
        self.index, self._row, self._texts, self._top, self._thinks = index, row, texts, top, thinks
        self.completion: Completion | None = None
        self.tokens = self.thought_tokens = 0
        self._calls = False

    def take(self, update: Update) -> tuple[list[Event], list[chat.TokenLogprob]]:
        """What an update adds.

        Raises:
            ApiError: the answer could not be finished.
        """
        self.tokens += len(update.tokens)
        thought = self._thinks is not None and self._thinks.thinking
        events = self._row.push(update.text)
        if thought or (self._thinks is not None and self._thinks.thinking):
            self.thought_tokens += len(update.tokens)
        if update.completion is not None:
            self.completion = update.completion
            refuse_broken(update.completion)
            events += self._row.finish()
        if len(events) > 1:
            events = joined(events)
        for event in events:
            if isinstance(event, CallStart):
                self._calls = True
        told = [] if self._texts is None else [_logprob(each, self._texts, self._top) for each in update.logprobs]
        return events, told

    @property
    def tells(self) -> bool:
        """Whether log-probabilities of its tokens are told."""
        return self._texts is not None

    @property
    def thinks(self) -> bool:
        """Whether thoughts are looked for, whose tokens are counted update by update."""
        return self._thinks is not None

    @property
    def finish_reason(self) -> str:
        """OpenAI's name for why the answer ended."""
        assert self.completion is not None, "the answer goes on"
        reason = self.completion.finish_reason
        return "tool_calls" if self._calls and reason is FinishReason.STOP else str(reason)

    @property
    def stop_reason(self) -> str | int | None:
        return None if self.completion is None else self.completion.stop_reason


def refuse_broken(completion: Completion) -> None:
    """Raise an ApiError where an output was not ended by the model, its length or a stop."""
    if completion.error is not None:
        raise ApiError(500, "model_failed", completion.error)
    if completion.finish_reason is FinishReason.ABORT:
        raise ApiError(503, "shutting_down", "the server ended this answer before it was whole")


def joined(events: Iterable[Event]) -> list[Event]:
    """Events of which no two neighbours are text of the same kind."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and event.index == last.index:
            found[-1] = CallArguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found


def reply_message(events: Sequence[Event], grounds: bool) -> chat.ReplyMessage:
    """The message that the events of a whole answer make.

    Args:
        grounds: boxes were looked for; then the lists of them stand in the message, if only empty.
    """
    content = "".join(event.text for event in events if isinstance(event, Text))
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    calls = [event for event in events if isinstance(event, CallStart)]
    message = chat.ReplyMessage(content if content or not calls else None)
    if thought:
        message.reasoning_content = message.reasoning = thought
    if calls:
        said = dict.fromkeys((call.index for call in calls), "")
        for event in events:
            if isinstance(event, CallArguments):
                said[event.index] += event.text
        message.tool_calls = [
            chat.CalledTool(chat.CalledFunction(call.name, said[call.index]), call.id, "function") for call in calls
        ]
    if grounds:
        message.groundings = [box_of(event) for event in events if isinstance(event, Grounded)]
        skipped = [skipped_of(event) for event in events if isinstance(event, NotGrounded)]
        message.groundings_skipped = skipped
    return message


def deltas(events: Iterable[Event]) -> list[chat.Delta]:
    """The frames of some events, one each; boxes that come together share one."""
    found: list[chat.Delta] = []
    for event in events:
        match event:
            case Text(text):
                found.append(chat.Delta(content=text))
            case Reasoning(text):
                found.append(chat.Delta(reasoning_content=text, reasoning=text))
            case CallStart(index, id_, name):
                called = chat.CalledTool(chat.CalledFunction(name, ""), id_, "function", index)
                found.append(chat.Delta(tool_calls=[called]))
            case CallArguments(index, text):
                called = chat.CalledTool(chat.CalledFunction(arguments=text), index=index)
                found.append(chat.Delta(tool_calls=[called]))
            case Grounded():
                found.append(chat.Delta(groundings=[box_of(event)]))
            case NotGrounded():
                found.append(chat.Delta(groundings_skipped=[skipped_of(event)]))
    return found


def box_of(event: Grounded) -> chat.Box:
    return chat.Box(event.label, event.picture, event.box, event.raw, event.span)


def skipped_of(event: NotGrounded) -> chat.SkippedBox:
    return chat.SkippedBox(event.text, event.reason)


def choice_of(
    answer: Answer, events: Sequence[Event], told: list[chat.TokenLogprob] | None, grounds: bool
) -> chat.Choice:
    """A whole answer as OpenAI says it."""
    logprobs = None if told is None else chat.ChoiceLogprobs(told)
    message = reply_message(events, grounds)
    return chat.Choice(answer.index, message, logprobs, answer.finish_reason, answer.stop_reason)


def prompt_logprobs_of(found: Sequence[TokenLogprobs] | None, texts: TokenTexts) -> Any:
    """vLLM's form: for each token of the prompt its own and the likeliest ones by id; nothing for the first."""
    if found is None:
        return UNSET
    rows: list[dict[str, Any] | None] = [None]
    for each in found:
        ranked = {id_: (logprob, rank + 1) for rank, (id_, logprob) in enumerate(each.top)}
        ranked.setdefault(each.token, (each.logprob, each.rank))
        rows.append(
            {
                str(id_): {"logprob": logprob, "rank": rank, "decoded_token": texts.of(id_)[0]}
                for id_, (logprob, rank) in ranked.items()
            }
        )
    return rows


def _logprob(found: TokenLogprobs, texts: TokenTexts, top: int) -> chat.TokenLogprob:
    text, raw = texts.of(found.token)
    others = [chat.TopLogprob(*_named(texts.of(id_), logprob)) for id_, logprob in found.top[:top]]
    return chat.TokenLogprob(text, _finite(found.logprob), raw, others)


def _named(said: tuple[str, list[int]], logprob: float) -> tuple[str, float, list[int]]:
    text, raw = said
    return text, _finite(logprob), raw


def _finite(logprob: float) -> float:
    """JSON has no infinities: what is impossible is as unlikely as OpenAI ever says."""
    return max(logprob, -9999.0)


Rows = Callable[[int], Row]
"""Makes the row of readers of each of a request's answers."""
