"""Answers that call tools, of random logits: their calls can be read, and keep to the schemas, in every format."""

import pytest

from modelwright.processing import parse_grounding_report
from modelwright.server.constraints import Constraint, read_constraint
from tests.server.guided import CITY, DIALECTS, END, TOKENIZER, TOOLS, draw, guiding, joined, parsed, read
from tests.server.schemas import holds, loads

NOW = {"type": "object", "properties": {}, "additionalProperties": False}
SECOND = {"type": "object", "properties": {"at": {"type": "boolean"}}}
SCHEMAS = {"get_weather": CITY, "now": NOW, "get_weather-2": SECOND}
ONE = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(params=sorted(DIALECTS))
def dialect(request):
    return DIALECTS[request.param]


def constraint(dialect, **fields) -> Constraint:
    return read_constraint({"tools": TOOLS, **fields}, guiding(dialect))


def check(asked: Constraint, text: str, ended: bool) -> tuple[str, list[str]]:
    """What a whole answer says and calls; each call's arguments keep to its schema."""
    reader = asked.reader()
    assert reader is not None
    events = read(reader, [text])
    said, calls = parsed(events) if ended else joined(events)
    for name, arguments in calls:
        assert name in SCHEMAS, "a tool that is not there"
        assert not ended or (isinstance(arguments, dict) and holds(SCHEMAS[name], arguments)), (name, arguments)
    return said, [name for name, _ in calls]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("parallel", [None, False])
def test_row_24_required_is_calls_and_nothing_else(dialect, parallel):
    asked, found, most = constraint(dialect, tool_choice="required", parallel_tool_calls=parallel), set(), 0
    for seed in range(30):
        text, ended = draw(asked.guide, seed, most=300, bias={END: -3.0})
        said, names = check(asked, text, ended)
        assert said == "" or not ended
        assert names or not ended
        found |= set(names)
        most = max(most, len(names))
    assert found == set(SCHEMAS)
    assert most == 1 if parallel is False else most > 1


def test_row_24_a_named_tool_is_called_once(dialect):
    asked = constraint(dialect, tool_choice=ONE)
    for seed in range(5):
        assert check(asked, *draw(asked.guide, seed)) == ("", ["now"])


def test_allowed_tools_are_shown_all_and_called_some(dialect):
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}}
    asked = constraint(dialect, tool_choice=allowed, parallel_tool_calls=False)
    assert check(asked, *draw(asked.guide, 0)) == ("", ["now"])
    assert asked.template_tools is None or len(asked.template_tools) == 3


def test_auto_is_text_or_text_and_then_calls(dialect):
    """Text may be anything; after the trigger a call follows, whatever the scores."""
    asked = constraint(dialect)
    trigger = "".join(part for part in dialect.trigger if isinstance(part, str))
    for seed in range(4):
        text, ended = draw(asked.guide, seed)
        assert check(asked, text, ended) == (text, [])
        for before in ("", "\n", "Let me see: {1} <x>\n"):
            text, ended = draw(asked.guide, seed, most=300, begins=before + trigger)
            said, names = check(asked, text, ended)
            assert not ended or (said == before.lstrip() and names)
            assert ended or seed > 0


def test_auto_leaves_room_for_boxes_and_constrains_them(dialect):
    asked = read_constraint({"tools": TOOLS, "grounding": {"constrain": True}}, guiding(dialect))
    found = 0
    for seed in range(4):
        begins = "<|ref|>the cat<|/ref|><|det|>"
        text, ended = draw(asked.guide, seed, most=400, begins=begins, bias={TOKENIZER.encode("]")[-1]: 4.0})
        report = parse_grounding_report(text, (999, 999))
        assert not ended or not report.skipped
        found += len(report.groundings)
    assert found


def test_auto_and_a_form_is_either(dialect):
    schema = {"type": "object", "properties": {"z": {"enum": [1, 2]}}, "required": ["z"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "z", "schema": schema}}
    fields = {
        "response_format": form,
        "structured_outputs": {"choice": ["yes", "no"]},
    }
    for name, value in fields.items():
        asked, kinds = constraint(dialect, **{name: value}), set()
        for seed in range(10):
            text, ended = draw(asked.guide, seed, most=300, bias={TOKENIZER.encode("z")[-1]: 6.0})
            said, names = check(asked, text, ended)
            assert not ended or bool(said) != bool(names)
            assert not ended or not said or said in ("yes", "no") or holds(schema, loads(said))
            kinds.add(bool(names))
        assert kinds == {True, False} or name == "response_format"


def test_none_shows_no_tools_and_calls_none(dialect):
    asked = constraint(dialect, tool_choice="none")
    assert (asked.guide, asked.reader(), asked.template_tools, asked.instruction) == (None, None, None, None)
