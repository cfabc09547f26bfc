"""Strict JSON to Structs: what one reader would take and another would not is refused, with the place of the fault."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

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
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _invalid(f"the body must be UTF-8, and byte {error.start} is not") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"the body is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _invalid(f"the body is nested deeper than {DEEPEST}") from error
    except ValueError as error:  # an int of more digits than Python reads
        raise _invalid("the body holds a number of too many digits") from error
    _check(value)
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _invalid(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise _invalid(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _invalid(f"the number {text[:40]} is beyond what a float holds")
    return number


def _check(value: Any) -> None:
    """Depth and surrogates, without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST and any(isinstance(each, list | dict) for each in level):
            raise _invalid(f"the body is nested deeper than {DEEPEST}")
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _check_text(each)
            elif isinstance(each, list):
                below += each
            elif isinstance(each, dict):
                below += each.keys()
                below += each.values()
        level = below


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _invalid("a text holds half of a surrogate pair, which no UTF-8 can say") from error


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds[type(value)]


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_json", message)
