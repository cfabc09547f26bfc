"""Objects of a schema that names their properties hold these alone, unless it says that there may be others.

JSON Schema lets an object have further properties of any kind, which nobody who asks for a form wants, and which a
small model fills until its answer is cut. Other servers close objects too (llama.cpp, vLLM's xgrammar); what is drawn
is an instance of the schema as it was sent all the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_ONE = ("additionalItems", "additionalProperties", "items", "contains")
_MANY = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_MERGING = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas")
"""Beside these, properties of one object are said in several places."""
_COUNTING = ("minProperties", "propertyNames", "not")


def closed_schema(schema: Any) -> Any:
    """`schema` with objects that are closed, or as it is where one object is described in several places."""
    if any(_is_shared(part) for part in _parts(schema)):
        return schema
    return _closed(schema)


def _is_shared(part: Mapping[str, Any]) -> bool:
    merges = "properties" in part and any(name in part for name in _MERGING)
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    return merges or several or any(name in part for name in _COUNTING)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        for name, value in schema.items():
            for each in _below(name, value):
                yield from _parts(each)


def _below(name: str, value: Any) -> list[Any]:
    """The schemas under a keyword."""
    if name in _NAMED and isinstance(value, Mapping):
        return list(value.values())
    if name in (*_MANY, "items") and isinstance(value, list):
        return value
    return [value] if name in _ONE else []


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _NAMED and isinstance(value, Mapping):
            found[name] = {key: _closed(each) for key, each in value.items()}
        elif name in (*_MANY, "items") and isinstance(value, list):
            found[name] = [_closed(each) for each in value]
        else:
            found[name] = _closed(value) if name in _ONE else value
    named, required = found.get("properties"), found.get("required", ())
    whole = (
        isinstance(named, Mapping) and isinstance(required, list | tuple) and all(each in named for each in required)
    )
    if whole and not any(name in found for name in _OPEN):
        found["additionalProperties"] = False
    return found
