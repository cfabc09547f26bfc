"""What of JSON Schema is held, and what is refused: of every keyword either, and nothing is dropped without a word."""

import pytest
from transformers import AutoTokenizer

from modelwright import zoo
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.params import Guide
from modelwright.engine.schema import enforced_schema
from modelwright.errors import GuideError

NANO = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))
COMPILER = GuideCompiler(NANO, [NANO.eos_token_id])
OPEN = {"a": {"type": "integer"}}
HELD = [
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, '{"a":"x"}', '{"a":1}'),
    ({"patternProperties": {"^a$": {}}, "additionalProperties": False, "type": "object"}, '{"b":1}', '{"a":1}'),
    ({"type": "object", "maxProperties": 1, "additionalProperties": {}}, '{"a":1,"b":1}', '{"a":1}'),
    ({"type": "object", "properties": OPEN}, '{"a":1,"a":"x"}', '{"a":1,"b":"x"}'),
    ({"type": "object", "properties": OPEN}, '{"\\u0061":"x"}', '{"b":"x"}'),
    ({"type": "object", "properties": {"a": False}}, '{"a":1}', '{"b":1}'),
    ({"type": "string", "format": "date"}, '"x"', '"2026-01-31"'),
    ({"type": "string", "pattern": "^[^a]$"}, '"\\u0061"', '"b"'),
    ({"type": "string", "maxLength": 1}, '"ab"', '"\\n"'),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, "[1,2]", "[1]"),
    ({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, "[1,2]", "[1]"),
    ({"type": "number", "multipleOf": 0.1}, "0.15", "0.2"),
    ({"type": "number", "maximum": 5}, "4.9e1", "4.9"),
    ({"enum": [1, 5], "minimum": 3}, "1", "5"),
    ({"allOf": [{"properties": OPEN}], "additionalProperties": False, "type": "object"}, '{"a":1}', "{}"),
    ({"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": {"type": "integer"}}}, "4", "6"),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "null", "3"),
    ({"minimum": 3}, "2", '"x"'),
    ({"required": ["a"]}, "{}", '{"a":1}'),
]
REFUSED = [
    ({"not": {"type": "integer"}}, "not"),
    ({"if": {"type": "integer"}, "then": {"minimum": 5}}, "if"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "array", "minContains": 2}, "minContains"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "propertyNames": {"pattern": "^a$"}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"$dynamicRef": "#a"}, "dynamicRef"),
    ({"$ref": "http://example.org/x"}, "example.org"),
    ({"type": "string", "format": "idn-email"}, "idn-email"),
    ({"type": "string", "pattern": "^(?=a).*$"}, "look-around"),
    ({"type": "string", "pattern": "^(a)\\1$"}, "backreferences"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "oneOf"),
    ({"patternProperties": {"^a": {"type": "integer"}, "b$": {}}, "type": "object"}, "not disjoint"),
    ({"type": "object", "minProperties": 2}, "may come twice.*at its top"),
    ({"properties": {"a": {"anyOf": [{"minProperties": 2}]}}}, "may come twice.*/properties/a/anyOf/0"),
    ({"$ref": "#/elsewhere", "elsewhere": {"minProperties": 2}}, "may come twice"),
    ({"divisibleBy": 2}, "divisibleBy"),
    ({"items": {"extends": {}}}, "extends.*/items"),
    ({"type": "string", "minlength": 3}, "did you mean minLength"),
    ({"any_of": [{}]}, "did you mean anyOf"),
    ({"const": "\x01"}, "control characters"),
    ({"properties": {"\x02": {}}}, "control characters"),
    ({"x-guidance": {"lenient": True}}, "whitespace_flexible and nothing else"),
    ({"x-guidance": {"item_separator": ";"}}, "whitespace_flexible and nothing else"),
    ({"x-guidance": {"whitespace_flexible": 1}}, "true or false"),
    ({"$ref": "#"}, "no text satisfies it"),
    ({"type": "object", "properties": OPEN, "required": ["b"], "additionalProperties": False}, "unsatisfiable"),
]


def accepts(schema, text: str) -> bool:
    """Whether the guide lets `text` out and may end after it."""
    follower, tokens = COMPILER.start(Guide(json_schema=schema), 0), NANO.encode(text, add_special_tokens=False)
    for place, token in enumerate(tokens):
        if not follower.allowed(tokens[:place])[token]:
            return False
    return bool(follower.allowed(tokens)[NANO.eos_token_id])


@pytest.mark.parametrize(("schema", "wrong", "right"), HELD)
def test_a_keyword_is_held(schema, wrong, right):
    assert accepts(schema, right) and not accepts(schema, wrong)


@pytest.mark.parametrize(("schema", "says"), REFUSED)
def test_a_keyword_that_cannot_be_held_is_refused(schema, says):
    with pytest.raises(GuideError, match=f"(?s)the guide's json_schema cannot be followed: .*{says}") as error:
        COMPILER.start(Guide(json_schema=schema), 0)
    assert not error.value.too_complex


def test_names_and_values_are_no_keywords():
    schema = {
        "title": "divisibleBy",
        "default": {"minProperties": 9},
        "examples": [{"extends": 1}],
        "properties": {"minlength": {"type": "integer"}, "x-guidance": {}, "extends": {"const": {"any_of": 1}}},
        "type": "object",
    }
    assert accepts(schema, '{"minlength":1}') and not accepts(schema, '{"minlength":"x"}')


def test_white_space_between_tokens_has_an_end():
    assert accepts({"type": "array"}, "[" + " " * 32 + "]") and not accepts({"type": "array"}, "[" + " " * 33 + "]")
    compact = {"type": "array", "x-guidance": {"whitespace_flexible": False}}
    assert accepts(compact, "[]") and not accepts(compact, "[ ]")


def test_true_is_any_json_and_what_is_no_schema_is_refused():
    assert enforced_schema(True).keys() == {"x-guidance"}
    with pytest.raises(GuideError, match="a schema must be an object or true, got 3"):
        enforced_schema(3)
