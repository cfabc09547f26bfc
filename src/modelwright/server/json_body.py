"""Strict JSON to Structs: what one reader would take and another would not is refused, with the place of the fault."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.server.wire.errors import ApiError

DEEPEST = 64
"""Objects and lists inside each other."""
_AT = re.compile(r"^(.*) - at `\$\.?(.*)`$")
T = TypeVar("T")


def read_json(raw: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: it is no UTF-8, no JSON or no object; a key stands twice, a number is none or infinite, half of a
            surrogate pair stands alone, or it is nested deeper than `DEEPEST`.
    """
    try:
        value = parse_json(raw, "the body")
    except NotJson as error:
        raise _invalid(str(error)) from error
    if is_too_deep(value):
        raise _invalid(f"the body is nested deeper than {DEEPEST}")
    if not isinstance(value, dict):
        raise _invalid(f"the body must be a JSON object, got {_kind(value)}")
    return value


def as_struct(value: Mapping[str, Any], kind: type[T]) -> T:
    """The request that an object says; a field that the Struct does not know is left out.

    Raises:
        ApiError: a field is missing, has another type or is out of its range; `param` names it.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _as_error(str(error)) from error


def _as_error(message: str) -> ApiError:
    found = _AT.match(message)
    said, place = (found[1], found[2]) if found else (message, "")
    missing = re.search(r"missing required field `(\w+)`", said)
    if missing:
        param = f"{place}.{missing[1]}" if place else missing[1]
        return ApiError(400, "missing_field", f"{param} is required", param=param)
    said = said.replace("`", "'")
    param = place.replace("[...]", "") or None
    return ApiError(400, "invalid_value", f"{param or 'the body'}: {said[:1].lower()}{said[1:]}", param=param)


def is_too_deep(value: Any) -> bool:
    """Whether objects and lists lie inside each other more than `DEEPEST` times; found without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST and any(isinstance(each, list | dict) for each in level):
            return True
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return False


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds[type(value)]


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_json", message)
