"""The grammar of an answer that calls tools, in llguidance's Lark: what is drawn by it can be read, by construction."""

import json
from collections.abc import Iterable, Mapping, Sequence

from modelwright.server.tools.dialects import Dialect, Part, Space
from modelwright.server.tools.request import Tool

MOST_CALLS = 32
"""In one answer."""
TEXT = r"/(.|\n)*/"
"""Any text without special tokens."""


def only_calls(dialect: Dialect, tools: Sequence[Tool], several: bool, tokens: Mapping[str, int]) -> str:
    """One call from the first token on, or several.

    Args:
        tools: those that may be called.
        tokens: the tokenizer's special tokens, which no text contains.
    """
    begin = f"{_terms((Space(4), *dialect.first), tokens)} call_0"
    return "\n".join((f"start: {begin} calls_0", *_calls(dialect, tools, several, tokens)))


def text_or_calls(
    dialect: Dialect,
    tools: Sequence[Tool],
    several: bool,
    tokens: Mapping[str, int],
    marks: Iterable[int] = (),
) -> str:
    """Any text, and after the trigger of a call nothing but calls.

    Args:
        marks: special tokens that may stand in the text, such as those around boxes.
    """
    choice = " | ".join(f"<[{id_}]>" for id_ in marks)
    free = [f"mark_0: {choice}"] if choice else []
    before = "(TEXT_0 mark_0)* " if choice else ""
    return "\n".join(
        (
            f"start: {before}(TEXT_0 | trigger_0 {_terms(dialect.head, tokens)} call_0 calls_0)",
            *free,
            f"TEXT_0: {TEXT}",
            *_trigger(dialect, tokens),
            *_calls(dialect, tools, several, tokens),
        )
    )


def form_or_calls(dialect: Dialect, tools: Sequence[Tool], several: bool, tokens: Mapping[str, int], form: str) -> str:
    """Calls, or what `form`, a term of Lark, allows."""
    begin = f"{_terms((Space(4), *dialect.first), tokens)} call_0"
    rules = (f"start: form_0 | {begin} calls_0", f"form_0: {form}")
    return "\n".join((*rules, *_calls(dialect, tools, several, tokens)))


def _trigger(dialect: Dialect, tokens: Mapping[str, int]) -> tuple[str, ...]:
    """Text up to the end of a trigger."""
    if all(part in tokens for part in dialect.trigger):
        return (f"trigger_0: TEXT_0 {_terms(dialect.trigger, tokens)}",)
    pattern = "".join(pattern_of(part, "/") for part in dialect.trigger)
    return (f"trigger_0[lazy]: /(.|\\n)*{pattern}/",)


def _calls(dialect: Dialect, tools: Sequence[Tool], several: bool, tokens: Mapping[str, int]) -> Iterable[str]:
    """From the name of the first call to the end: ``call_0 calls_0``."""
    middle, end = _terms(dialect.middle, tokens), _terms(dialect.last, tokens)
    yield "call_0: " + " | ".join(f"tool_{number}" for number in range(len(tools)))
    for number, tool in enumerate(tools):
        yield f"tool_{number}: {json.dumps(tool.name)} {middle} %json {tool.schema}"
    further = f"({_terms(dialect.next, tokens)} call_0){{0,{MOST_CALLS - 1}}} " if several else ""
    yield f"calls_0: {further}{end}"


def _terms(parts: Sequence[Part], tokens: Mapping[str, int]) -> str:
    """Parts in Lark: texts that stand together as one, white space as an expression, special tokens by their ids."""
    return " ".join(_term(part, tokens) for part in parts)


def _term(part: Part, tokens: Mapping[str, int]) -> str:
    if isinstance(part, Space):
        return f"/{pattern_of(part, '/')}/"
    return f"<[{tokens[part]}]>" if part in tokens else json.dumps(part)


def pattern_of(part: Part, escaped: str = "") -> str:
    """A part as a regular expression, in which the characters of `escaped` are escaped too."""
    if isinstance(part, Space):
        return f"[ \\n\\r\\t]{{0,{part.most}}}"
    special = set("\\.+*?()|[]{}^$#&-~ ") | set(escaped)
    return "".join(f"\\{each}" if each in special and each != " " else each for each in part)
