"""Structural tags, in vLLM's form: text that is free up to a trigger, and there what a tag's schema allows."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from modelwright.configs.field_types import cut
from modelwright.engine.params import is_text
from modelwright.engine.schema import enforced_schema
from modelwright.errors import GuideError
from modelwright.server.tools.grammar import TEXT, pattern_of
from modelwright.server.wire.errors import ApiError

MOST_TAGS = 128
LONGEST_TAG = 1024
"""Characters of a trigger, or of what a tag begins or ends with."""


def read_tags(given: Any, where: str, marks: Iterable[int] = ()) -> str:
    """The grammar of ``{"structures": [{"begin", "schema", "end"}], "triggers": [...]}``, in Lark.

    Args:
        where: the field, for messages.
        marks: special tokens that may stand in the free text.

    Raises:
        ApiError: 400 with the place of what is wrong.
    """
    if not isinstance(given, Mapping) or "structures" not in given:
        raise _wrong(where, f"{where} must be an object with structures and triggers, got {cut(given)}")
    structures = _list(given["structures"], f"{where}.structures")
    triggers = _list(given.get("triggers"), f"{where}.triggers")
    for number, trigger in enumerate(triggers):
        _check_text(trigger, f"{where}.triggers[{number}]")
    tags = [_tag(tag, f"{where}.structures[{number}]", triggers) for number, tag in enumerate(structures)]
    unused = [trigger for trigger in triggers if not any(trigger == used for used, _ in tags)]
    if unused:
        raise _wrong(
            f"{where}.triggers", f"{where}.triggers must each begin a structure, and {cut(unused[0])} does not"
        )
    used = list(dict.fromkeys(trigger for trigger, _ in tags))
    choice = " | ".join(f"<[{id_}]>" for id_ in marks)
    free = "(TEXT_0 mark_0)* " if choice else ""
    rules = [f"start: ({' | '.join(f'{free}group_{i}' for i in range(len(used)))})* {free}TEXT_0", f"TEXT_0: {TEXT}"]
    rules += [f"mark_0: {choice}"] if choice else []
    for number, trigger in enumerate(used):
        rests = " | ".join(rest for of, rest in tags if of == trigger)
        rules += [f"group_{number}: trigger_{number} ( {rests} )"]
        rules += [f"trigger_{number}[lazy]: /(.|\\n)*{_pattern(trigger)}/"]
    return "\n".join(rules)


def _tag(tag: Any, where: str, triggers: list[str]) -> tuple[str, str]:
    """The trigger of a tag, and the terms after it."""
    if not isinstance(tag, Mapping) or not {"begin", "schema", "end"} <= tag.keys():
        raise _wrong(where, f"{where} must be an object with begin, schema and end, got {cut(tag)}")
    begin, end = tag["begin"], tag["end"]
    _check_text(begin, f"{where}.begin")
    if end != "":
        _check_text(end, f"{where}.end")
    trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
    if trigger is None:
        raise _wrong(f"{where}.begin", f"{where}.begin must begin with one of the triggers, got {cut(begin)}")
    try:
        schema = json.dumps(enforced_schema(tag["schema"]))
    except GuideError as error:
        code = "schema_too_complex" if error.too_complex else "invalid_schema"
        raise ApiError(400, code, f"{where}.schema: {error}", param=f"{where}.schema") from error
    ends = [json.dumps(text) for text in (begin[len(trigger) :], end)]
    return trigger, " ".join(part for part in (ends[0], f"%json {schema}", ends[1]) if part != '""')


def _pattern(text: str) -> str:
    return pattern_of(text, "/").replace("\n", "\\n").replace("\r", "\\r")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_TAGS:
        raise _wrong(where, f"{where} must be a list of 1 to {MOST_TAGS}, got {cut(value)}")
    return value


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TAG or not is_text(value):
        raise _wrong(where, f"{where} must be a text of 1 to {LONGEST_TAG} characters, got {cut(value)}")


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
