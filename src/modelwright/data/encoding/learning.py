"""Which messages of a conversation are learned, by ``data.labels`` and by what a message says; no tokens here."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelwright.data.documents import Document
from modelwright.data.examples import BrokenRow, Message, Place
from modelwright.errors import RequestError


class Unlearned(BrokenRow):
    """A row of which nothing is learned."""


@dataclass(frozen=True)
class Learning:
    """What is learned of a conversation.

    Attributes:
        answers: the messages of the assistant whose words and end are learned, by their numbers.
        rest: whether all that is no answer is learned too, but for pictures.
    """

    answers: frozenset[int]
    rest: bool = False


def learned_of(messages: Sequence[Message], labels: str) -> Learning:
    """What ``data.labels`` and the messages' own ``loss`` say is learned.

    ``assistant`` learns every answer, ``last`` the last one, ``all`` everything; ``loss`` of an answer goes before
    that.

    Raises:
        RequestError: a message that is no answer says what only an answer may.
    """
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    for number, message in enumerate(messages):
        if message.role == "assistant" or message.learn is None or message.learn == (labels == "all"):
            continue
        if message.learn:
            raise RequestError(
                f"messages[{number}] has loss: true and role {message.role}: only the assistant's messages are "
                "learned one by one; data.labels: all learns every message"
            )
        if labels == "all":
            raise RequestError(
                f"messages[{number}] has loss: false and role {message.role}: data.labels: all learns every message "
                "that is not the assistant's, so it must be assistant or last"
            )
    by_setting = answers[-1:] if labels == "last" else answers
    learned = {number: number in by_setting if (own := messages[number].learn) is None else own for number in answers}
    return Learning(frozenset(number for number, taught in learned.items() if taught), labels == "all")


@dataclass(frozen=True)
class Room:
    """How long a document may be, and what becomes of a longer one.

    Attributes:
        tokens: ``data.seq_length``.
        truncate: ``data.truncate``.
    """

    tokens: int
    truncate: str

    def fitted(self, document: Document, picture_tokens: tuple[int, ...] = ()) -> Document:
        """The document, cut where it may be.

        Raises:
            BrokenRow: it is too long.
            Unlearned: nothing of it is learned.
        """
        tokens = len(document)
        if tokens > self.tokens:
            if self.truncate != "end" or not document.reads_last:
                raise BrokenRow(document.place, self._too_long(document, tokens))
            document = document.cut(self.tokens, picture_tokens)
        if not document.counted:
            left = f"the first {len(document)} of its {tokens} tokens" if tokens > len(document) else "it"
            raise Unlearned(document.place, f"the row teaches nothing: no token of {left} is learned")
        return document

    def _too_long(self, document: Document, tokens: int) -> str:
        hint = "; data.truncate: end leaves out what is too much" if document.reads_last else ""
        return f"the document has {tokens} tokens and data.seq_length allows {self.tokens}{hint}"


def refuse(place: Place, error: RequestError) -> BrokenRow:
    """An error about a row as one that says where the row stands."""
    return error if isinstance(error, BrokenRow) else BrokenRow(place, str(error))
