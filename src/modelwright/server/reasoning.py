"""`ThinkReader`, which parts what a model thought, between ``<think>`` and ``</think>``, from what it answers."""

from modelwright.server.events import Event, Reasoning, Text

OPEN, CLOSE = "<think>", "</think>"


class ThinkReader:
    """One of the row of readers; only what stands before the answer is thought.

    Args:
        begun: the prompt ends with `OPEN`, so that the answer begins within it.
    """

    def __init__(self, begun: bool):
        self._state = "thinking" if begun else "start"
        self._held = ""
        self._bare = begun  # whether newlines at the beginning of what follows are left out

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, or the mark that ends it."""
        return self._state == "thinking"

    def push(self, text: str) -> list[Event]:
        self._held += text
        return [event for event in self._advance() if event.text]

    def finish(self) -> list[Event]:
        rest, self._held = self._held, ""
        if not rest:
            return []
        return [Reasoning(rest) if self._state == "thinking" else Text(rest)]

    def _advance(self) -> list[Text | Reasoning]:
        if self._state == "start":
            said = self._held.lstrip()
            if OPEN.startswith(said) and len(said) < len(OPEN):
                return []
            if said.startswith(OPEN):
                self._state, self._held, self._bare = "thinking", said[len(OPEN) :], True
            else:
                self._state = "answer"
        if self._state == "thinking":
            if self._bare:
                self._held = self._held.lstrip("\n")
                self._bare = not self._held
            thought, mark, after = self._held.partition(CLOSE)
            if mark:
                self._state, self._held, self._bare = "answer", after, True
                return [Reasoning(thought.rstrip("\n")), *self._answer()]
            begun = _overlap(thought)
            kept = begun + _newlines(thought[: len(thought) - begun])
            self._held = thought[len(thought) - kept :]
            return [Reasoning(thought[: len(thought) - kept])]
        return self._answer()

    def _answer(self) -> list[Text | Reasoning]:
        said, self._held = self._held, ""
        if self._bare:
            said = said.lstrip("\n")
            self._bare = not said
        return [Text(said)]


def _newlines(text: str) -> int:
    return len(text) - len(text.rstrip("\n"))


def _overlap(text: str) -> int:
    """The length of the longest end of `text` that begins `CLOSE`."""
    return next((n for n in range(min(len(text), len(CLOSE) - 1), 0, -1) if text.endswith(CLOSE[:n])), 0)
