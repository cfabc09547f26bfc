"""JSON schemas as llguidance holds them: what it would leave out of its mask without a word is refused here."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelwright.configs.field_types import cut
from modelwright.errors import GuideError

DEEPEST = 100
"""Levels of a schema: llguidance reads 128 levels of JSON, and a grammar around a schema takes some."""
_SCHEMA = ("additionalItems", "additionalProperties", "items", "not", "contains", "propertyNames", "if", "then", "else")
_SCHEMAS = ("prefixItems", "allOf", "anyOf", "oneOf", "items")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DROPPED = ("extends", "disallow", "divisibleBy")
"""Keywords of JSON Schema's draft 3, which mean something and which llguidance takes for comments."""
_KNOWN = (
    *_SCHEMA,
    *_SCHEMAS,
    *_NAMED_SCHEMAS,
    *("type", "enum", "const", "required", "pattern", "format", "minLength", "maxLength", "minItems", "maxItems"),
    *("uniqueItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minContains"),
    *("maxContains", "minProperties", "maxProperties", "unevaluatedItems", "unevaluatedProperties"),
    *("dependentRequired",),
)
_SPELT = {name.lower(): name for name in _KNOWN}
_ESCAPES = 'nrbtf\\"'
"""What may follow a backslash: with ``u`` llguidance lets a name that is spelt in escapes pass as an unknown one."""
_SHORT = "\n\r\b\t\f"
_WHITE_SPACE = r"[ \n\r\t]{1,32}"
"""Between the tokens of JSON; without an end, a model may write nothing else for ever."""
_OWN = "x-guidance"


def enforced_schema(schema: Any) -> dict[str, Any]:
    """`schema` with what llguidance is to be told about it.

    A schema may say ``"x-guidance": {"whitespace_flexible": false}`` for JSON without white space, and nothing else of
    what llguidance reads there, since the rest makes a mask weaker than the schema.

    Raises:
        GuideError: it is no schema, or says something that llguidance would not hold and would not refuse.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise GuideError(f"a schema must be an object or true, got {cut(schema)}")
    own = schema.get(_OWN, {})
    if not isinstance(own, Mapping) or set(own) - {"whitespace_flexible"}:
        raise GuideError(f"{_OWN} of a schema may hold whitespace_flexible and nothing else, got {cut(own)}")
    flexible = own.get("whitespace_flexible", True)
    if not isinstance(flexible, bool):
        raise GuideError(f"whitespace_flexible of a schema must be true or false, got {cut(flexible)}")
    for part, path in _parts(schema):
        _check(part, path)
    spaces = {"whitespace_pattern": _WHITE_SPACE} if flexible else {"whitespace_flexible": False}
    options = {**spaces, "json_allowed_escapes": _ESCAPES, "lenient": False, "coerce_one_of": False}
    return {**schema, _OWN: options}


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """A schema and all that it is made of, each once, with the path to it."""
    left: list[tuple[Any, str, int]] = [(schema, "", 0)]
    seen: set[int] = set()
    while left:
        part, path, depth = left.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue  # whether it may be something else is llguidance's to say
        if depth > DEEPEST:
            raise GuideError(
                f"a schema must be at most {DEEPEST} levels deep, and {cut(path)} is deeper", too_complex=True
            )
        seen.add(id(part))
        yield part, path
        for name, value in part.items():
            here = f"{path}/{name}"
            if name in _SCHEMA:
                left.append((value, here, depth + 1))
            if name in _SCHEMAS and isinstance(value, list):
                left += [(each, f"{here}/{number}", depth + 1) for number, each in enumerate(value)]
            if name in _NAMED_SCHEMAS and isinstance(value, Mapping):
                left += [(each, f"{here}/{key}", depth + 1) for key, each in value.items()]
            if name == "$ref" and isinstance(value, str) and value.startswith("#/"):
                left.append((_resolved(schema, value), value[1:], depth + 1))


def _resolved(schema: Any, reference: str) -> Any:
    """What a reference inside the schema points to; None for what llguidance will not find either."""
    for step in reference[2:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and len(step) < 9 and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, Mapping) and step in schema:
            schema = schema[step]
        else:
            return None
    return schema


def _check(part: Mapping[str, Any], path: str) -> None:
    where = f"at {cut(path)}" if path else "at its top"
    for name in part:
        if not isinstance(name, str):
            raise GuideError(f"a schema must have texts as keys, got {cut(name)} {where}")
        if name in _DROPPED:
            raise GuideError(f"a schema must not hold {name}, which cannot be enforced, and this one does {where}")
        meant = _SPELT.get(name.replace("_", "").replace("-", "").lower())
        if meant is not None and meant != name:
            raise GuideError(f"a schema holds {cut(name)} {where}, which is no keyword; did you mean {meant}?")
    least, closed = part.get("minProperties"), part.get("additionalProperties") is False
    if isinstance(least, int | float) and least > 1 and not (closed and not part.get("patternProperties")):
        raise GuideError(
            f"a schema with minProperties ({least}) above 1 must name its properties and say additionalProperties "
            f"false, since a name that is free may come twice, and this one does not {where}"
        )
    names = [*_keys(part, "properties"), *(part["required"] if isinstance(part.get("required"), list) else ())]
    for value in (part.get("enum"), part.get("const"), names):
        _check_texts(value, where)


def _keys(part: Mapping[str, Any], name: str) -> list[Any]:
    value = part.get(name)
    return list(value) if isinstance(value, Mapping) else []


def _check_texts(value: Any, where: str) -> None:
    """Refuse texts that JSON writes as escapes of another kind than those that may be drawn."""
    if value is None:
        return
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GuideError(f"a schema must be JSON: {error} {where}") from error
    if "\\u00" in written and any(ord(each) < 32 and each not in _SHORT for each in _characters(value)):
        raise GuideError(f"a schema must not ask for control characters, and this one does {where}")


def _characters(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from str(name)
            yield from _characters(each)
    elif isinstance(value, list):
        for each in value:
            yield from _characters(each)
