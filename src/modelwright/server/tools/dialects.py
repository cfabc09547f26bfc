"""How models write calls of tools: one `Dialect` each, of which both the grammar and the reader are made.

``llama3`` is ``{"name": "...", "parameters": {...}}``, as Llama 3's template prints it. ``deepseek`` is that of
DeepSeek-V2.5 and later, with tokens of their own. ``json`` is ``<tool_call>`` around an object with ``name`` and
``arguments``: that of Hermes and Qwen, and ours for models whose template does not read ``tools``, which are told of it
in their system turn.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from modelwright.errors import ConfigError
from modelwright.processing.templates import pick_template, reads


@dataclass(frozen=True)
class Space:
    """White space, so many characters of it at most."""

    most: int = 8


Part = str | Space
"""A text that stands as it is (a token's name is such too), or white space."""


@dataclass(frozen=True)
class Dialect:
    """How one model writes calls.

    Attributes:
        name: of the format, for ``--tool-format``.
        trigger: what only a call begins with; in an answer that may also be text, a call follows it for certain.
        head: between the trigger and the name.
        middle: between the name and the arguments.
        tail: after the arguments.
        between: from the tail of a call to the head of the next, with its trigger.
        end: after the last call.
        prints_tools: the model's template prints ``tools``; otherwise an instruction in the system turn does.
        prints_calls: the template prints earlier calls and what came of them; otherwise they are written as text.
        arguments_are_text: the template reads the arguments of earlier calls as text, not as an object.
        one_call_a_turn: the template refuses an earlier turn with several calls.
    """

    name: str
    trigger: tuple[Part, ...]
    head: tuple[Part, ...]
    middle: tuple[Part, ...]
    tail: tuple[Part, ...]
    between: tuple[Part, ...]
    end: tuple[Part, ...] = ()
    prints_tools: bool = True
    prints_calls: bool = True
    arguments_are_text: bool = False
    one_call_a_turn: bool = False

    @property
    def first(self) -> tuple[Part, ...]:
        """Up to the name of the first call."""
        return (*self.trigger, *self.head)

    @property
    def next(self) -> tuple[Part, ...]:
        """From the end of a call's arguments up to the name of a further call."""
        return (*self.tail, *self.between)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The parts that begin and end as the names of tokens do."""
        parts = (*self.first, *self.next, *self.last)
        return tuple(dict.fromkeys(part for part in parts if isinstance(part, str) and part[0] == "<"))

    @property
    def last(self) -> tuple[Part, ...]:
        """From the end of the last call's arguments."""
        return (*self.tail, *self.end)


_SPACE = Space()
_NAME = ("{", _SPACE, '"name"', _SPACE, ":", _SPACE, '"')


def _object(arguments: str) -> tuple[Part, ...]:
    return ('"', _SPACE, ",", _SPACE, f'"{arguments}"', _SPACE, ":", _SPACE)


_CALLS, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _NAMED, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
LLAMA3 = Dialect(
    "llama3",
    trigger=_NAME,
    head=(),
    middle=_object("parameters"),
    tail=(_SPACE, "}"),
    between=(_SPACE, ";", _SPACE, *_NAME),
    one_call_a_turn=True,
)
DEEPSEEK = Dialect(
    "deepseek",
    trigger=(_CALLS,),
    head=(Space(4), _CALL, "function", _NAMED),
    middle=("\n```json\n",),
    tail=(_SPACE, "```", _END),
    between=(Space(4), _CALL, "function", _NAMED),
    end=(Space(4), _ALL_END),
    arguments_are_text=True,
)
JSON = Dialect(
    "json",
    trigger=("<tool_call>",),
    head=(_SPACE, *_NAME),
    middle=_object("arguments"),
    tail=(_SPACE, "}", _SPACE, "</tool_call>"),
    between=(_SPACE, "<tool_call>", _SPACE, *_NAME),
)
FORMATS = ("auto", "llama3", "deepseek", "json")


def dialect_of(template: object, vocabulary: Collection[str], asked: str = "auto") -> Dialect:
    """How a model writes calls.

    Args:
        template: its chat template, or several by name; None where it has none.
        vocabulary: its tokens.
        asked: one of `FORMATS`; ``auto`` goes by what the template prints.

    Raises:
        ConfigError: there is no such format, or the model lacks its tokens.
    """
    if asked not in FORMATS:
        raise ConfigError(f"tool_format must be one of {', '.join(FORMATS)}, got {asked!r}", field="tool_format")
    text = _for_tools(template)
    prints = reads(text, "tools") if text else False
    missing = [part for part in DEEPSEEK.tokens if part not in vocabulary]
    if asked == "deepseek" and missing:
        raise ConfigError(
            f"tool_format deepseek needs the token {missing[0]!r}, which the tokenizer lacks", field="tool_format"
        )
    if asked == "deepseek" or (asked == "auto" and _CALLS in text and not missing):
        return replace(DEEPSEEK, prints_tools=prints, prints_calls=_CALLS in text)
    if asked == "llama3" or (asked == "auto" and prints and '"parameters": ' in text):
        return replace(LLAMA3, prints_tools=prints, prints_calls=prints)
    prints = prints and "<tool_call>" in text
    return replace(JSON, prints_tools=prints, prints_calls=prints)


def _for_tools(template: object) -> str:
    """The template that prints conversations with tools."""
    if isinstance(template, dict):
        template = pick_template(template, None, with_tools=True)
    return template if isinstance(template, str) else ""
