"""``response_format`` and ``structured_outputs``: what they let out, and what they are refused for."""

import json
import re

import pytest

from modelwright.server.constraints import read_constraint
from modelwright.server.wire.errors import ApiError
from tests.server.guided import COMPILER, PLAIN, draw


def guide_of(**fields):
    guide = read_constraint(fields, PLAIN).guide
    assert guide is not None
    return guide


def answers(guide, seeds=6, **how):
    found = [draw(guide, seed, **how) for seed in range(seeds)]
    ended = [text for text, ended in found if ended]
    assert ended
    return ended


def test_text_is_free():
    assert read_constraint({"response_format": {"type": "text"}}, PLAIN).guide is None
    assert read_constraint({}, PLAIN).guide is None


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_json_object_is_any_object(fields):
    assert all(isinstance(json.loads(text), dict) for text in answers(guide_of(**fields)))


@pytest.mark.parametrize("schema", [{"type": "integer"}, '{"type": "integer"}'])
def test_json_takes_a_schema_or_its_text(schema):
    assert all(isinstance(json.loads(text), int) for text in answers(guide_of(structured_outputs={"json": schema})))


def test_a_choice_is_one_of_the_texts():
    texts = ['a"b', "é\n", "a", "\\d+", "/*"]
    assert set(answers(guide_of(structured_outputs={"choice": texts}), 30)) <= set(texts)
    assert len(set(answers(guide_of(structured_outputs={"choice": texts}), 30))) > 2


def test_an_expression_is_matched_whole():
    pattern = "a/[bc]{2}\\n?"
    assert all(re.fullmatch(pattern, text) for text in answers(guide_of(structured_outputs={"regex": pattern})))


def test_a_grammar_is_kept_to():
    guide = guide_of(structured_outputs={"grammar": 'start: "x" start "y" | "z"'})
    assert all(re.fullmatch("x*zy*", text) and text.count("x") == text.count("y") for text in answers(guide))


def test_structural_tags_hold_a_schema_after_their_trigger():
    tag = {"begin": '<fn name="f">', "schema": {"type": "array", "items": {"type": "integer"}}, "end": "</fn>"}
    guide = guide_of(structured_outputs={"structural_tag": {"structures": [tag], "triggers": ["<fn"]}})
    for text in answers(guide, most=200, begins="Well: <fn"):
        found = re.match(r'Well: <fn name="f">(\[[\d,\s-]*\])</fn>', text)
        assert found and isinstance(json.loads(found[1]), list)
    assert COMPILER.start(guide, 0).allowed([]) is not None


@pytest.mark.parametrize(
    ("fields", "code", "param", "says"),
    [
        ({"response_format": 5}, "invalid_value", "response_format", "got 5"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema", "schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "invalid_schema",
            "response_format.json_schema.schema",
            "got 3",
        ),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs", "exactly one .* got none"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "invalid_value", "structured_outputs", "got json, regex"),
        ({"structured_outputs": {"backend": "x"}}, "unsupported_parameter", "structured_outputs.backend", "not known"),
        ({"structured_outputs": {"regex": 3}}, "invalid_value", "structured_outputs.regex", "got 3"),
        ({"structured_outputs": {"regex": "\ud800"}}, "invalid_value", "structured_outputs.regex", "UTF-8"),
        ({"structured_outputs": {"choice": "ab"}}, "invalid_value", "structured_outputs.choice", "list"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "invalid_value", "structured_outputs.choice[1]", "empty"),
        ({"structured_outputs": {"choice": ["a"] * 5000}}, "schema_too_complex", "structured_outputs.choice", "4096"),
        ({"structured_outputs": {"json": "{"}}, "invalid_schema", "structured_outputs.json", "JSON"),
        ({"structured_outputs": {"json_object": 1}}, "invalid_value", "structured_outputs.json_object", "true"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "invalid_value",
            "structured_outputs",
            "exclude",
        ),
        (
            {"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": {}}}},
            "invalid_value",
            "structured_outputs.structural_tag",
            "structures and triggers",
        ),
        (
            {
                "structured_outputs": {"grammar": "start: /a/"},
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            "unsupported_parameter",
            "structured_outputs.grammar",
            "beside tools",
        ),
    ],
)
def test_what_is_no_form_is_refused(fields, code, param, says):
    with pytest.raises(ApiError, match=says) as refused:
        read_constraint(fields, PLAIN)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)
