"""Schemas drawn by hypothesis, and whether a value keeps to one: a check of its own for what is drawn here."""

import json
import math
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

_NAMES = st.text('abcdé_ /"\\\n', min_size=1, max_size=4)
_WORDS = st.text('xyzé "\\/{\n', max_size=4)
_PATTERNS = ("^a+b?$", "^[0-9]{2,3}$", "b", "^(x|yz)*$", "[é]", "^$")
_FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"\d{1,3}(\.\d{1,3}){3}",
}


def _bounded(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Both limits, one or none, in order."""
    pairs = st.tuples(values, values).map(sorted)
    both = pairs.map(lambda pair: {low: pair[0], high: pair[1]})
    return st.one_of(st.just({}), values.map(lambda value: {low: value}), both)


_TEXTS = st.one_of(
    _bounded("minLength", "maxLength", st.integers(0, 5)),
    st.sampled_from(_PATTERNS).map(lambda pattern: {"pattern": pattern}),
    st.sampled_from(list(_FORMATS)).map(lambda format_: {"format": format_}),
).map(lambda rules: {"type": "string", **rules})
_WHOLE = st.one_of(
    _bounded("minimum", "maximum", st.integers(-300, 300)),
    st.tuples(st.integers(-50, 50), st.integers(3, 60)).map(
        lambda pair: {"exclusiveMinimum": pair[0], "exclusiveMaximum": pair[0] + pair[1]}
    ),
    st.integers(2, 9).map(lambda step: {"multipleOf": step, "minimum": 0, "maximum": 99}),
).map(lambda rules: {"type": "integer", **rules})
_NUMBERS = st.one_of(
    st.just({}),
    _bounded("minimum", "maximum", st.integers(-90, 90).map(lambda tenths: tenths / 4)),
    st.just({"multipleOf": 0.25, "minimum": -2, "maximum": 2}),
).map(lambda rules: {"type": "number", **rules})
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), _WORDS, st.just([1, "a"]), st.just({"k": None}))
_SIMPLE = st.one_of(
    _TEXTS,
    _WHOLE,
    _NUMBERS,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": ["integer", "null"], "maximum": 3}),
    st.lists(_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    _VALUES.map(lambda value: {"const": value}),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(_NAMES, inner, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(list(properties)), unique=True))
    extra = draw(st.sampled_from([None, False, "schema", "pattern"]))
    if extra is False:
        schema["additionalProperties"] = False
        if len(properties) > 2 and draw(st.booleans()):
            schema["minProperties"] = 2
    elif extra == "schema":
        schema["additionalProperties"] = draw(_SIMPLE)
        if draw(st.booleans()):
            schema["maxProperties"] = max(len(schema.get("required", ())), draw(st.integers(1, 4)))
    elif extra == "pattern":
        schema |= {"patternProperties": {"^k": draw(_SIMPLE)}, "additionalProperties": False}
    return schema


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner)}
    least = draw(st.integers(0, 2))
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema | {"minItems": least, "maxItems": least + draw(st.integers(0, 2))}


@st.composite
def _merged(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    """What llguidance merges: conditions on one value in several places."""
    whole = {"type": "object", "properties": {"a": draw(inner), "b": draw(_WHOLE)}, "required": ["a"]}
    return draw(
        st.sampled_from(
            [
                {"allOf": [whole, {"properties": {"c": {"const": 1}}, "required": ["c"]}]},
                {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}, {"multipleOf": 3}]},
                {"allOf": [whole], "additionalProperties": False, "properties": {"a": {}}},
                {**whole, "anyOf": [{"required": ["b"]}, {"properties": {"a": {"const": 5}}}]},
                {"type": "string", "allOf": [{"minLength": 2}, {"pattern": "^[a-c]*$"}, {"maxLength": 4}]},
                {
                    "type": "array",
                    "items": {"type": "integer"},
                    "allOf": [{"prefixItems": [{"minimum": 5}]}],
                    "maxItems": 2,
                },
            ]
        )
    )


@st.composite
def _referring(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    """References, with conditions beside them, and to themselves."""
    part = {"type": "object", "properties": {"a": draw(inner), "b": draw(_WHOLE)}, "required": ["a"]}
    chain = {"type": ["object", "null"], "properties": {"n": {"$ref": "#/$defs/chain"}, "v": draw(_SIMPLE)}}
    closed = {**chain, "required": ["v"], "additionalProperties": False}
    names = {"part": part, "chain": closed, "leaf": draw(_SIMPLE)}
    top = draw(st.sampled_from([{"$ref": "#/$defs/part", "required": ["b"]}, {"$ref": "#/$defs/chain"}, _TWO_LEAVES]))
    return {"$defs": names, **top}


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})
    return st.one_of(_objects(inner), _arrays(inner), unions, _merged(inner))


_TWO_LEAVES = {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 2, "maxItems": 2}
SCHEMAS = st.one_of(_grow(_SIMPLE), _referring(_SIMPLE), st.recursive(_SIMPLE, _grow, max_leaves=6))


def loads(text: str) -> Any:
    """JSON whose numbers are finite: one beyond all floats is the largest."""
    most = sys.float_info.max
    return json.loads(text, parse_float=lambda number: min(max(float(number), -most), most))


def holds(schema: Any, value: Any, root: Any = None) -> bool:
    """Whether `value` keeps to `schema`, by the rules of JSON Schema 2020-12 for the keywords that are drawn here."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    unknown = set(schema) - _KNOWN
    assert not unknown, f"no check for {unknown}"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if not holds(root["$defs"][name], value, root):
            return False
    kinds = schema.get("type", list(_TYPES))
    if not any(_TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if not all(holds(each, value, root) for each in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(holds(each, value, root) for each in schema["anyOf"]):
        return False
    return _holds_by_kind(schema, value, root)


def _holds_by_kind(schema: Mapping[str, Any], value: Any, root: Any) -> bool:
    if isinstance(value, str):
        pattern = schema.get("pattern", "")
        known = _FORMATS.get(schema.get("format", ""), ".*")
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
            and re.search(pattern.replace("$", r"\Z"), value) is not None
            and re.fullmatch(known, value, re.DOTALL) is not None
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
            and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
            and ("multipleOf" not in schema or Fraction(value) % Fraction(schema["multipleOf"]) == 0)
        )
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rules = [*first, *[schema.get("items", True)] * max(0, len(value) - len(first))]
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf) and all(
            holds(rule, each, root) for rule, each in zip(rules, value, strict=False)
        )
    if isinstance(value, dict):
        return _holds_as_object(schema, value, root)
    return True


def _holds_as_object(schema: Mapping[str, Any], value: dict[str, Any], root: Any) -> bool:
    for name, each in value.items():
        rules = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        rules += [rule for pattern, rule in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        if not all(holds(rule, each, root) for rule in rules or [schema.get("additionalProperties", True)]):
            return False
    return set(schema.get("required", ())) <= value.keys() and schema.get("minProperties", 0) <= len(
        value
    ) <= schema.get("maxProperties", math.inf)


def _same(one: Any, other: Any) -> bool:
    return (type(one) is type(other) and one == other) or (
        isinstance(one, int | float)
        and isinstance(other, int | float)
        and not isinstance(one, bool)
        and not isinstance(other, bool)
        and one == other
    )


_TYPES = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_KNOWN = {
    *("$defs", "$ref", "type", "enum", "const", "allOf", "anyOf", "minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "prefixItems"),
    *("minItems", "maxItems", "properties", "required", "additionalProperties", "patternProperties"),
    *("minProperties", "maxProperties"),
}
