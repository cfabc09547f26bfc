"""The output of a response as it grows: items, and the events that tell of them with the ids that they keep."""

from collections.abc import Sequence
from typing import Any

import msgspec

from modelwright.server.answers import box_of, new_id, skipped_of
from modelwright.server.events import CallArguments, CallStart, Event, Grounded, NotGrounded, Reasoning, Text
from modelwright.server.wire.chat import TokenLogprob

Told = dict[str, Any]
"""An event: its type and what it says."""


class Items:
    """Takes events of an answer and gives those of the Responses API.

    Args:
        grounds: boxes are looked for in the answer.
        logprobs: those of tokens are told.

    Attributes:
        output: the items so far.
    """

    def __init__(self, grounds: bool, logprobs: bool):
        self.output: list[dict[str, Any]] = []
        self._grounds, self._logprobs = grounds, logprobs
        self._open: dict[str, Any] | None = None
        self._held: list[Any] = []  # log-probabilities of tokens whose text is still held back

    def take(self, events: Sequence[Event], told: Sequence[TokenLogprob]) -> list[Told]:
        """What some events of the answer become."""
        found: list[Told] = []
        held = self._held + ([msgspec.to_builtins(each) for each in told] if self._logprobs else [])
        for event in events:
            match event:
                case Text(text):
                    found += self._text("message", text, held)
                    held = []
                case Reasoning(text):
                    found += self._text("reasoning", text, [])
                case CallStart(_, id_, name):
                    found += self._close()
                    item = {"id": new_id("fc_"), "type": "function_call", "status": "in_progress"}
                    found += self._add(item | {"call_id": id_, "name": name, "arguments": ""})
                case CallArguments(_, text):
                    assert self._open is not None, "arguments follow the start of their call"
                    self._open["arguments"] += text
                    found.append(self._event("response.function_call_arguments.delta", delta=text))
                case Grounded() | NotGrounded():
                    found += self._pointed(event)
        says = self._open is None or self._open["type"] == "message"
        self._held = held if says else []  # those of calls and thoughts are told nowhere
        return found

    def finish(self, status: str) -> list[Told]:
        """The end of what is still open; an answer without any item says nothing in a message."""
        found = self._text("message", "", self._held) if self._held or not self.output else []
        return found + self._close(status)

    def _text(self, kind: str, text: str, logprobs: list[Any]) -> list[Told]:
        found: list[Told] = []
        if self._open is None or self._open["type"] != kind:
            found += self._close()
            found += self._add(_message(self._grounds) if kind == "message" else _reasoning())
            found.append(self._event("response.content_part.added", content_index=0, part=_empty(kind)))
            self._content().append(_empty(kind))
        part = self._content()[0]
        part["text"] += text
        if kind == "message":
            part["logprobs"] += logprobs
            found.append(self._event("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs))
        else:
            found.append(self._event("response.reasoning_text.delta", content_index=0, delta=text))
        return found

    def _pointed(self, event: Grounded | NotGrounded) -> list[Told]:
        """A box belongs to the last message, whose end may have been told: what is no box shows late."""
        messages = [place for place, item in enumerate(self.output) if item["type"] == "message"]
        found = [] if messages else self._text("message", "", [])
        place = messages[-1] if messages else len(self.output) - 1
        item = self.output[place]
        where = {"item_id": item["id"], "output_index": place}
        if isinstance(event, Grounded):
            box = msgspec.to_builtins(box_of(event))
            item["groundings"].append(box)
            return [*found, {"type": "response.modelwright.grounding", **where, "grounding": box}]
        skipped = msgspec.to_builtins(skipped_of(event))
        item["groundings_skipped"].append(skipped)
        return [*found, {"type": "response.modelwright.grounding_skipped", **where, "skipped": skipped}]

    def _add(self, item: dict[str, Any]) -> list[Told]:
        self._open = item
        self.output.append(item)
        shown = msgspec.to_builtins(item)
        return [{"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": shown}]

    def _close(self, status: str = "completed") -> list[Told]:
        item = self._open
        if item is None:
            return []
        found: list[Told] = []
        item["status"] = status
        if item["type"] == "function_call":
            done = self._event("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
            found.append(done)
        else:
            part = self._content()[0]
            if item["type"] == "message":
                text = {"text": part["text"], "logprobs": part["logprobs"]}
                found.append(self._event("response.output_text.done", content_index=0, **text))
            else:
                found.append(self._event("response.reasoning_text.done", content_index=0, text=part["text"]))
            found.append(self._event("response.content_part.done", content_index=0, part=msgspec.to_builtins(part)))
        shown = msgspec.to_builtins(item)
        found.append({"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": shown})
        self._open = None
        return found

    def _content(self) -> list[dict[str, Any]]:
        assert self._open is not None
        return self._open["content"]

    def _event(self, kind: str, **said: Any) -> Told:
        assert self._open is not None
        return {"type": kind, "item_id": self._open["id"], "output_index": len(self.output) - 1, **said}


def _message(grounds: bool) -> dict[str, Any]:
    item = {"id": new_id("msg_"), "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    return item | ({"groundings": [], "groundings_skipped": []} if grounds else {})


def _reasoning() -> dict[str, Any]:
    return {"id": new_id("rs_"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}


def _empty(kind: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}
