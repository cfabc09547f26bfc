"""Conversations: OpenAI's messages, ms-swift's, LLaVA's and ShareGPT's, and those of one question and one answer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelwright.data.examples import Chat, Content, Message, Pair, PictureRef
from modelwright.data.formats.fields import (
    CALLS,
    LEARNED,
    MEDIA,
    PARTLY_LEARNED,
    PICTURES,
    THOUGHTS,
    TURNS,
    broken,
    first_given,
    is_given,
    items,
    listed,
    mapping_of,
    nothing_beside,
    optional_words,
    required,
    several,
    shown,
)
from modelwright.data.formats.fields import words as words_of
from modelwright.data.formats.grounding import Objects
from modelwright.data.formats.pictures import PictureFolder
from modelwright.data.rows import Row
from modelwright.errors import RequestError
from modelwright.processing.contents import with_lines
from modelwright.processing.messages import PictureSlot, read_part, split_placeholders

IMAGE = "<image>"
"""Where a picture stands in a string of a row that brings pictures; in other rows it is text."""

_ROLES = {
    "system": ("system", "developer", "deepseekapi-sys"),
    "user": ("user", "human", "<|User|>"),
    "assistant": ("assistant", "gpt", "<|Assistant|>"),
    "tool": ("tool", "tool_response", "observation", "function"),
}
ROLES = {name: role for role, names in _ROLES.items() for name in names}
"""The names of roles in all dialects, with what they are here."""


def read_messages(row: Row, folder: PictureFolder) -> Content:
    """``messages`` with role and content, beside ``images`` and ``objects`` where it has them."""
    nothing_beside(row, "messages", ("history",))
    return _chat(row, folder, items(row, "messages", required(row, "messages")))


def read_conversations(row: Row, folder: PictureFolder) -> Content:
    """``conversations`` with from and value, beside ``image``; or ``conversation`` with human and assistant."""
    values = mapping_of(row)
    nothing_beside(row, "conversations", ("history",))
    if "conversations" not in values and "conversation" in values:
        turns = items(row, "conversation", values["conversation"])
        return _chat(row, folder, [message for turn in turns for message in _both(row, turn)])
    return _chat(row, folder, items(row, "conversations", required(row, "conversations")))


def read_alpaca(row: Row, folder: PictureFolder) -> Content:
    """``instruction``, ``input`` where there is one (on a line of its own), and ``output``."""
    asked, more = words_of(row, "instruction", required(row, "instruction")), optional_words(row, "input")
    question = "\n".join(text for text in (asked, more) if text)
    return _asked(row, folder, question, words_of(row, "output", required(row, "output")))


def read_query(row: Row, folder: PictureFolder) -> Content:
    """``query`` and ``response``."""
    question, answer = (words_of(row, name, required(row, name)) for name in ("query", "response"))
    return _asked(row, folder, question, answer)


def read_pair(row: Row, folder: PictureFolder) -> Content:
    """``prompt`` and ``completion``: words, or messages, of whose answers the completion's alone are learned."""
    prompt, completion = required(row, "prompt"), required(row, "completion")
    if isinstance(prompt, str):
        nothing_beside(row, "words without a chat format", (*PICTURES, *MEDIA, *CALLS, *TURNS))
        return Pair(prompt, words_of(row, "completion", completion))
    nothing_beside(row, "messages", ("history",))
    asked = [_not_learned(message) for message in items(row, "prompt", prompt)]
    return _chat(row, folder, [*asked, *items(row, "completion", completion)])


def read_caption(row: Row, folder: PictureFolder) -> Content:
    """``image`` and what it shows, ``caption`` or ``text``: a question that is the picture alone."""
    nothing_beside(row, "one picture and its caption", ("images", "objects", *MEDIA, *CALLS, *TURNS))
    name = "caption" if "caption" in mapping_of(row) else "text"
    answer = Message("assistant", (words_of(row, name, required(row, name)),))
    pictures = several(row, "image", required(row, "image"))
    if not pictures:
        raise broken(row, "image must be a picture, and there is none")
    return Chat((Message("user", tuple(folder.find(row, picture) for picture in pictures)), answer))


def _asked(row: Row, folder: PictureFolder, question: str, answer: str) -> Chat:
    """One question with its answer, after those of ``history``, which is a list of [question, answer]."""
    history = several(row, "history", mapping_of(row).get("history"))
    turns = [items(row, "an entry of history", turn) for turn in history]
    if any(len(turn) != 2 for turn in turns):
        raise broken(row, "an entry of history must be a question and an answer")
    texts = [text for turn in [*turns, [question, answer]] for text in turn]
    roles = ("user", "assistant") * (len(texts) // 2)
    return _chat(row, folder, [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)])


def _both(row: Row, turn: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(turn, Mapping) or not {"human", "assistant"} <= turn.keys():
        raise broken(row, f"a turn of conversation must have 'human' and 'assistant', got {shown(turn)}")
    return ({"role": role, "content": turn[role]} for role in ("human", "assistant"))


def _not_learned(message: Any) -> Any:
    """An answer that is a part of the prompt."""
    answers = isinstance(message, Mapping) and ROLES.get(str(message.get("role", message.get("from")))) == "assistant"
    return {**message, "loss": False} if answers else message


def _chat(row: Row, folder: PictureFolder, turns: Sequence[Any]) -> Chat:
    values = mapping_of(row)
    unknown = first_given(row, (*MEDIA, *CALLS))
    if unknown is not None:
        raise broken(row, f"it has {unknown!r}, which no model here is trained on: leave it out")
    system = optional_words(row, "system")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    if not turns:
        raise broken(row, "it has no messages")
    name = first_given(row, ("images", "image")) or "images"
    if name == "images" and first_given(row, ("image",)):
        raise broken(row, "it has both 'images' and 'image': name all pictures in one of them")
    beside = [folder.find(row, given) for given in several(row, name, values.get(name))]
    drafts = [_Draft(row, folder, f"messages[{number}]", turn, bool(beside)) for number, turn in enumerate(turns)]
    _place(row, drafts, beside)
    shown_pictures = [part for draft in drafts for part in draft.parts if isinstance(part, PictureRef)]
    if values.get("objects"):
        objects = Objects(row, values["objects"], shown_pictures)
        for draft in drafts:
            draft.parts = [objects.fill(part) if isinstance(part, str) else part for part in draft.parts]
        objects.finish()
    return Chat(tuple(draft.finished() for draft in drafts))


class _Draft:
    """A message while its pictures are put in; ``None`` among its parts is a place for one."""

    def __init__(self, row: Row, folder: PictureFolder, where: str, given: Any, beside: bool):
        self.row, self.where = row, where
        if not isinstance(given, Mapping):
            raise broken(row, f"{where} must be a mapping with 'role' and 'content', got {shown(given)}")
        self.role = self._role(given)
        self.learn = self._learn(given)
        for name in CALLS:
            if is_given(given.get(name)):
                raise broken(row, f"{where} has {name!r}, which no model here is trained on: write the call as text")
        for name in ("image", *MEDIA):
            if is_given(given.get(name)):
                rule = "pictures of a message are its 'images', and nothing else is shown"
                raise broken(row, f"{where} has {name!r}: {rule}")
        for name in THOUGHTS:
            if is_given(given.get(name)):
                raise broken(row, f"{where} has {name!r}, which is no part of its content: write it into the content")
        own = given.get("images")
        pieces = self._pieces(given, beside or own is not None)
        self.parts: list[str | PictureRef | None] = [
            part if isinstance(part, str) else self._picture(folder, part) for part in pieces
        ]
        if own is not None:
            self.fill([folder.find(row, picture) for picture in several(row, f"{where}.images", own)])

    def _picture(self, folder: PictureFolder, slot: PictureSlot) -> PictureRef | None:
        if slot.picture is None:
            return None
        return folder.find(self.row, slot.picture, None if slot.detail == "auto" else slot.detail)

    def _role(self, given: Mapping[str, Any]) -> str:
        name = given.get("role", given.get("from"))
        if not isinstance(name, str) or name not in ROLES:
            raise broken(self.row, f"{self.where} has role {shown(name)}: it must be one of {', '.join(ROLES)}")
        return ROLES[name]

    def _learn(self, given: Mapping[str, Any]) -> bool | None:
        for name in PARTLY_LEARNED:
            if given.get(name) is not None:
                raise broken(self.row, f"{self.where} has {name!r}, and a message is learned as a whole or not at all")
        said = {name: given[name] for name in LEARNED if given.get(name) is not None}
        for name, value in said.items():
            if value not in (0, 1) or (name == "weight" and isinstance(value, bool)):
                allowed = "0 or 1" if name == "weight" else "true or false"
                raise broken(self.row, f"{self.where}.{name} must be {allowed}, got {shown(value)}")
        learn = {bool(value) for value in said.values()}
        if len(learn) > 1:
            contrary = " and ".join(f"{name} {value}" for name, value in said.items())
            raise broken(self.row, f"{self.where} has {contrary}: keep one")
        return learn.pop() if learn else None

    def _pieces(self, given: Mapping[str, Any], shows_pictures: bool) -> list[str | PictureSlot]:
        if not {"content", "value"} & given.keys():
            raise broken(self.row, f"{self.where} has no 'content': its names are {listed(given)}")
        content = given.get("content", given.get("value"))
        if content is None and self.role == "assistant":
            raise broken(self.row, f"{self.where}.content is null, which would teach an answer without words")
        if content is None:
            return []
        if isinstance(content, str):
            return split_placeholders(content, IMAGE) if shows_pictures else [content] * bool(content)
        parts = items(self.row, f"{self.where}.content", content)
        try:
            read = [read_part(f"{self.where}.content[{number}]", part) for number, part in enumerate(parts)]
        except RequestError as error:
            raise broken(self.row, str(error)) from error
        return with_lines(read)

    @property
    def open(self) -> int:
        return sum(part is None for part in self.parts)

    def fill(self, pictures: Sequence[PictureRef]) -> None:
        if self.open != len(pictures):
            raise broken(self.row, _counts(self.where, self.open, len(pictures)))
        supply = iter(pictures)
        self.parts = [next(supply) if part is None else part for part in self.parts]

    def finished(self) -> Message:
        return Message(self.role, tuple(part for part in self.parts if part is not None), self.learn)


def _place(row: Row, drafts: Sequence[_Draft], pictures: Sequence[PictureRef]) -> None:
    """Put the pictures that stand beside a conversation into it, in order.

    Where no message has a place, they come before the first question, as in ms-swift.
    """
    places = sum(draft.open for draft in drafts)
    if pictures and not places:
        asked = next((draft for draft in drafts if draft.role == "user"), None)
        if asked is not None:
            asked.parts = [*pictures, *asked.parts]
            return
    if places != len(pictures):
        raise broken(row, _counts("its messages", places, len(pictures)))
    supply = iter(pictures)
    for draft in drafts:
        draft.fill([next(supply) for _ in range(draft.open)])


def _counts(where: str, places: int, pictures: int) -> str:
    return (
        f"{where}: {places} {IMAGE} placeholder{'s' * (places != 1)} but {pictures} picture{'s' * (pictures != 1)}; "
        "there must be as many of one as of the other"
    )
