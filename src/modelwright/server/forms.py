"""``response_format`` and ``structured_outputs``: the form that an answer's text must have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelwright.configs.field_types import cut
from modelwright.engine.params import is_text
from modelwright.engine.schema import enforced_schema
from modelwright.errors import GuideError
from modelwright.server.closed_schema import closed_schema
from modelwright.server.tags import read_tags
from modelwright.server.wire.errors import ApiError

MOST_CHOICES = 4096
MOST_TEXT = 1024 * 1024
"""Characters of a schema, of an expression, of a grammar, and of all choices together."""
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Form:
    """What the text of an answer must be.

    Attributes:
        param: the field that asks for it.
        kind: json_schema, regex or grammar, as `Guide` calls them.
        text: the schema, expression or grammar.
        term: the same as a term of Lark, so that it can stand beside calls of tools; None where that cannot be.
    """

    param: str
    kind: str
    text: str
    term: str | None


def read_form(response_format: Any, structured_outputs: Any, marks: Mapping[str, int]) -> Form | None:
    """The form that a request asks for, None for text as it comes.

    Args:
        marks: special tokens that may stand in free text.

    Raises:
        ApiError: 400 with the place of what is wrong.
    """
    by_format, by_output = _read_format(response_format), _read_output(structured_outputs, marks)
    if by_format is not None and by_output is not None:
        raise _wrong("structured_outputs", "response_format and structured_outputs exclude each other, got both")
    return by_format or by_output


def _read_format(given: Any) -> Form | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":  # with a schema, as llama.cpp's users say it
        own = given.get("schema")
        return _schema(ANY_OBJECT, "response_format") if own is None else _schema(own, "response_format.schema")
    if kind == "structural_tag":
        return _tags(given, "response_format", {})
    if kind != "json_schema":
        raise _wrong(
            "response_format",
            f"response_format must be an object whose type is text, json_object or json_schema, got {cut(given)}",
        )
    where = "response_format.json_schema"
    described = given.get("json_schema")
    if not isinstance(described, Mapping) or described.get("schema") is None:
        raise _wrong(where, f"{where} must be an object with name and schema, got {cut(described)}")
    if not isinstance(described.get("strict", False), bool | None):
        raise _wrong(f"{where}.strict", f"{where}.strict must be true or false, got {cut(described['strict'])}")
    return _schema(described["schema"], f"{where}.schema")


def _read_output(given: Any, marks: Mapping[str, int]) -> Form | None:
    if given is None:
        return None
    where = "structured_outputs"
    if not isinstance(given, Mapping):
        raise _wrong(where, f"{where} must be an object with one of {', '.join(KINDS)}, got {cut(given)}")
    for name in given:
        if name not in KINDS:
            raise ApiError(
                400,
                "unsupported_parameter",
                f"{where}.{cut(name)} is not known; {where} takes one of {', '.join(KINDS)}",
                param=f"{where}.{name}"[:80],
            )
    asked = [name for name in KINDS if given.get(name) is not None and given.get(name) is not False]
    if len(asked) != 1:
        raise _wrong(where, f"{where} must hold exactly one of {', '.join(KINDS)}, got {', '.join(asked) or 'none'}")
    [kind] = asked
    return _READERS[kind](given[kind], f"{where}.{kind}", marks)


def _json(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "invalid_schema", f"{where} must be JSON: {error}", param=where) from error
    return _schema(value, where)


def _schema(schema: Any, where: str) -> Form:
    try:
        checked = enforced_schema(schema)
        text, enforced = json.dumps(closed_schema(schema)), json.dumps(closed_schema(checked))
    except GuideError as error:
        raise refusal(error, where) from error
    except RecursionError as error:
        raise ApiError(400, "schema_too_complex", f"{where} must not be so deep", param=where) from error
    except (TypeError, ValueError) as error:
        raise ApiError(400, "invalid_schema", f"{where} must be JSON: {error}", param=where) from error
    _check_length(text, where)
    return Form(where, "json_schema", text, f"%json {enforced}")


def _object(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    if value is not True:
        raise _wrong(where, f"{where} must be true or false, got {cut(value)}")
    return _schema(ANY_OBJECT, where)


def _regex(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    text = _text(value, where)
    lines = text.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")
    return Form(where, "regex", text, f"/{lines}/")


def _grammar(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    return Form(where, "grammar", _text(value, where), None)


def _choice(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _wrong(where, f"{where} must be a list of texts, got {cut(value)}")
    if len(value) > MOST_CHOICES:
        raise ApiError(
            400,
            "schema_too_complex",
            f"{where} must be at most {MOST_CHOICES} texts, got {len(value)}",
            param=where,
        )
    for number, each in enumerate(value):
        _text(each, f"{where}[{number}]")
    _text("".join(value), where)
    term = "( " + " | ".join(json.dumps(each) for each in dict.fromkeys(value)) + " )"
    return Form(where, "grammar", f"start: {term}", term)


def _tags(value: Any, where: str, marks: Mapping[str, int]) -> Form:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _wrong(where, f"{where} must be JSON: {error}") from error
    return Form(where, "grammar", read_tags(value, where, marks.values()), None)


_READERS = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
    "structural_tag": _tags,
}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or not is_text(value):
        raise _wrong(where, f"{where} must be text in UTF-8 and not empty, got {cut(value)}")
    _check_length(value, where)
    return value


def _check_length(text: str, where: str) -> None:
    if len(text) > MOST_TEXT:
        message = f"{where} must be at most {MOST_TEXT} characters, got {len(text)}"
        raise ApiError(400, "schema_too_complex", message, param=where)


def refusal(error: GuideError, where: str) -> ApiError:
    """What the client is told of a guide that cannot be followed."""
    code = "schema_too_complex" if error.too_complex else "invalid_schema"
    return ApiError(400, code, f"{where}: {error}", param=where)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
