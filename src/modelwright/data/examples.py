"""What one row of training data says, whatever file and format it came from; nothing is tokenised or decoded here."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from modelwright.errors import RequestError


@dataclass(frozen=True)
class Place:
    """Where a row stands; ``str()`` of it is ``file:line``.

    Attributes:
        file: the path, as an error shows it.
        line: counted from 1; in files without lines the number of the row.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class PictureRef:
    """A picture that is not opened yet.

    Attributes:
        source: a path that exists or a ``data:`` URL, or the bytes of an encoded picture.
        detail: how closely it is looked at (`processing.messages.DETAILS`); None leaves that to the model.
    """

    source: str | bytes
    detail: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        parts: words and pictures in order. Words are never searched for placeholders again.
        learn: whether training learns it; None leaves that to the setting ``data.labels``.
    """

    role: str
    parts: tuple[str | PictureRef, ...]
    learn: bool | None = None

    @property
    def words(self) -> str:
        """The words alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[PictureRef, ...]:
        """The pictures alone, in order."""
        return tuple(part for part in self.parts if isinstance(part, PictureRef))


@dataclass(frozen=True)
class Text:
    """Words that are all learned."""

    text: str


@dataclass(frozen=True)
class Chat:
    """A conversation."""

    messages: tuple[Message, ...]

    @property
    def pictures(self) -> tuple[PictureRef, ...]:
        """All pictures, in order."""
        return tuple(picture for message in self.messages for picture in message.pictures)


@dataclass(frozen=True)
class Pair:
    """Words that are read, and words that are learned; no chat format stands between them."""

    prompt: str
    completion: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """A row that is tokenised already.

    Attributes:
        ids: int64 [n].
        labels: int64 [n], -100 where nothing is learned; ``labels[i]`` is of token ``i`` itself. None learns all.
    """

    ids: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Picture:
    """A picture whose pixels are learned."""

    picture: PictureRef


Content = Text | Chat | Pair | Tokens | Picture


@dataclass(frozen=True)
class Example:
    """One row: where it stands and what it says."""

    place: Place
    content: Content


class BrokenRow(RequestError):
    """A row that cannot be an example; the others are not affected.

    Args:
        place: where it stands.
        reason: why, without the place.
    """

    def __init__(self, place: Place, reason: str):
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses from worker processes
        return type(self), (self.place, self.reason)


class Source(Protocol):
    """Rows by number, of one entry of ``data.train`` or ``data.eval``.

    Attributes:
        name: what reports call it.
        format: the format of its rows, as stated or found.
    """

    name: str
    format: str

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Example:
        """One row; raises `BrokenRow` where it is none, and IndexError outside ``range(len(self))``."""
        ...

    def unread(self) -> list[str]:
        """The names that its first rows and their messages have, and that change nothing of what is learned."""
        ...

    def fingerprint(self) -> list[dict[str, Any]]:
        """Its files as ``{"file", "size", "sha256"}``, in order."""
        ...
