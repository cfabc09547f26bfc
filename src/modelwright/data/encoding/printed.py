"""A conversation as a chat template prints it, and where in it the answers stand that are learned.

Templates are not asked for ``{% generation %}``, which few have. Instead the conversation is printed up to each answer,
with the header that asks for it, just as it is printed when the model is used: what follows that is what the model is
to say. Where the answer ends is found by a mark behind its words, which the template prints as it prints words.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelwright.data.encoding.spans import Span
from modelwright.errors import RequestError
from modelwright.processing.templates import Rendering, reads, render

_MARK = "\ue001{}\ue002"
"""What stands behind the words of an answer while it is printed; of characters for private use."""
_MARKS = re.compile("\ue001([0-9]+)\ue002")
_SPACE = re.compile(r"\s+")
_DAY = {"d": "26", "m": "07", "Y": "2024", "y": "24", "b": "Jul", "B": "July", "a": "Fri", "A": "Friday", "j": "208"}
"""The day that templates are told who print today's, which would be another one when a run is resumed: the one that
Llama 3's prints where it is told none. Hours and less are zero."""
_CLOCK = "".join(f".replace('%{name}', '{value}')" for name, value in (_DAY | dict.fromkeys("HMS", "00")).items())
_FIXED_DAY = "{%- macro strftime_now(format) -%}{{ format" + _CLOCK + " }}{%- endmacro -%}"
_SHOWN = 40
"""Characters of a print that an error shows."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Printed:
    """A conversation's print.

    Attributes:
        text: the print.
        learned: where the answers stand that are learned, each with its end.
        ends: whether the template prints an end behind the last answer, if that is learned.
    """

    text: str
    learned: tuple[Span, ...]
    ends: bool = True


class ChatPrinter:
    """Prints conversations by one template.

    Args:
        tokenizer: of transformers.
        template: the Jinja template.
    """

    def __init__(self, tokenizer: Any, template: str):
        self.tokenizer = tokenizer
        self.template = (_FIXED_DAY if reads(template, "strftime_now") else "") + template
        self._asks = reads(template, "add_generation_prompt")
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        tokens = sorted((re.escape(token.content) for token in added if token.content), key=len, reverse=True)
        self._end = re.compile(rf"\s*(?:{'|'.join(tokens)})") if tokens else None

    def __call__(self, messages: Messages, answers: Collection[int]) -> Printed:
        """The print of a conversation of which some answers are learned.

        Args:
            messages: ``role`` and ``content`` of each.
            answers: the numbers of those that are learned.

        Raises:
            RequestError: the template cannot print the messages, or does not print an answer as it will be asked for.
        """
        if any("\ue001" in message["content"] for message in messages):
            raise RequestError("a message holds U+E001, a character for private use, which marks answers here")
        text = self._print(messages)
        without, stops = self._marked(messages, answers)
        if without != text:
            raise RequestError("the chat template prints words otherwise where a mark stands behind an answer")
        found = [self._span(messages, number, text, stops) for number in sorted(answers)]
        spans = tuple((start, stop) for start, stop, _ in found)
        if len(messages) - 1 not in answers or found[-1][2]:
            return Printed(text, spans)
        return Printed(text[: spans[-1][1]], spans, ends=False)

    def _span(self, messages: Messages, number: int, text: str, stops: Mapping[int, int]) -> tuple[int, int, bool]:
        """Where an answer and its end stand in the print of the whole conversation, and whether it has an end."""
        start = self._start(messages, number, text)
        said = _SPACE.sub("", messages[number]["content"])
        before, alone = self._probed(messages[: number + 1])
        if not said and text.startswith(before) and len(before) >= start:
            stop = len(before)  # where its words would stand
        else:
            stop = stops.get(number, -1 if said else start)
        if stop < start or not _SPACE.sub("", text[start:stop]).endswith(said):
            raise RequestError(
                f"the chat template leaves out a part of messages[{number}], such as its thoughts, so the model would "
                f"learn another answer than the one given{self._hint(messages, number)}"
            )
        end = self._end_of(text[stop:], alone)
        return (start, stop + len(end), bool(end)) if said or end else (start, start, False)

    def _start(self, messages: Messages, number: int, text: str) -> int:
        """Where the prompt ends that an answer is asked with."""
        before = messages[:number]
        asked = self._print(before, asks=True) if before else self._opening(messages)
        if not self._asks:
            header = self._probed([*before, {**messages[number], "content": ""}])[0][len(asked) :]
            asked += header if header.strip() else ""
        if not text.startswith(asked):
            same = len(_shared(asked, text))
            raise RequestError(
                f"the chat template asks for messages[{number}] with {asked[same : same + _SHOWN]!r} where it prints "
                f"{text[same : same + _SHOWN]!r} once the answer is there, so the model would learn to answer prompts "
                f"that it is never given{self._hint(messages, number)}"
            )
        return len(asked)

    def _opening(self, messages: Messages) -> str:
        """What comes before an answer to nothing."""
        return self._probed([{**messages[0], "content": ""}])[0]

    def _end_of(self, after: str, alone: str) -> str:
        """The end of an answer: as much of ``after`` as stands behind the words of a last answer, ``alone``."""
        found = self._end.match(alone) if self._end else None
        if found:
            return found[0] if after.startswith(found[0]) else ""
        return _shared(after, alone).rstrip()

    def _probed(self, messages: Messages) -> tuple[str, str]:
        """What is printed before the end of the words of a last answer, or of where they would be, and behind it."""
        *before, last = messages
        marked = _with_mark(last["content"], 0) if last["content"].strip() else _MARK.format(0)
        words, _, rest = self._print([*before, {**last, "content": marked}]).partition(_MARK.format(0))
        return words, rest

    def _marked(self, messages: Messages, answers: Collection[int]) -> tuple[str, dict[int, int]]:
        """The print of messages with marks behind the words of answers, without the marks, and where they stood."""
        marked = [
            {**message, "content": _with_mark(message["content"], number)} if number in answers else message
            for number, message in enumerate(messages)
        ]
        *pieces, rest = _MARKS.split(self._print(marked))
        text, stops = "", {}
        for words, number in zip(pieces[::2], pieces[1::2], strict=True):
            text += words
            stops[int(number)] = len(text)
        return text + rest, stops

    def _print(self, messages: Messages, asks: bool = False) -> str:
        how = Rendering(add_generation_prompt=asks, continue_final_message=False)
        return render(self.tokenizer, self.template, messages, how)

    def _hint(self, messages: Messages, number: int) -> str:
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return ": learn it alone (data.labels: last) or not at all (loss: false)" if number != last else ""


def _with_mark(words: str, number: int) -> str:
    """``words`` with a mark behind the last of them, before white space, which templates strip; none if empty."""
    kept = words.rstrip()
    return kept + _MARK.format(number) + words[len(kept) :] if kept else words


def _shared(one: str, other: str) -> str:
    """What two texts begin with alike."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
