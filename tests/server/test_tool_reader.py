"""Calls read from text: pieces of any cut make what the whole makes, and what is no call stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.server.events import CallArguments, CallStart, Text
from modelwright.server.tools.reader import CallReader, new_call_id
from tests.server.guided import DIALECTS, joined, read

NAMES = ("get_weather", "now")
CALLS = {
    "llama3": [
        '{"name": "get_weather", "parameters": {"city": "a}{\\"\\\\"}}',
        '{"name":"now","parameters":{}}; { "name" : "get_weather",\n"parameters":\n{"a": [{"b": "]"}, 1]} }',
    ],
    "json": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a}{\\"\\\\"}}\n</tool_call>',
        '<tool_call>{"name":"now","arguments":{}}</tool_call>\n<tool_call>{"name": "get_weather",'
        '"arguments":{"a": [{"b": "]"}, 1]}}</tool_call>',
    ],
    "deepseek": [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "a}{\\"\\\\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"a": [{"b": "]"}, 1]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ],
}
READ = [
    [("get_weather", '{"city": "a}{\\"\\\\"}')],
    [("now", "{}"), ("get_weather", '{"a": [{"b": "]"}, 1]}')],
]
TEXTS = [(name, number, text) for name, texts in CALLS.items() for number, text in enumerate(texts)]


def reader(name: str) -> CallReader:
    numbers = iter(range(99))
    return CallReader(DIALECTS[name], NAMES, lambda: f"call_{next(numbers)}")


@pytest.mark.parametrize(("name", "number", "text"), TEXTS)
@pytest.mark.parametrize("before", ["", "\n ", "Let me look.\n"])
def test_calls_are_read_at_any_cut(name, number, text, before):
    whole = joined(read(reader(name), [before + text]))
    assert whole == (before.lstrip(), READ[number])
    text = before + text
    assert joined(read(reader(name), list(text))) == whole
    for cut in range(1, len(text)):
        assert joined(read(reader(name), [text[:cut], text[cut:]])) == whole


@given(st.sampled_from(sorted(CALLS)), st.data())
def test_pieces_equal_the_whole_whatever_the_text(name, data):
    """Of shreds that resemble calls, in any order, cut anywhere."""
    shreds = [
        *CALLS[name][0],
        *CALLS[name],
        '{"name"',
        ': "',
        "bogus",
        '", "parameters": {',
        "<tool_call>",
        "}",
        " ",
        ";",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(shreds), max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events, whole = read(reader(name), pieces), read(reader(name), [text])
    assert joined(events) == joined(whole)
    starts = [event for event in events if isinstance(event, CallStart)]
    assert starts == [event for event in whole if isinstance(event, CallStart)]
    assert all(start.name in NAMES and start.index == place for place, start in enumerate(starts))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_name_is_told_before_its_arguments_and_arguments_as_they_come(name):
    text, followed = CALLS[name][0], reader(name)
    events = [event for each in text for event in followed.push(each)]
    assert isinstance(events[0], CallStart) and events[0].name == "get_weather"
    assert len([event for event in events if isinstance(event, CallArguments)]) == len(READ[0][0][1])


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_of_a_tool_that_is_not_there_is_text(name):
    text = CALLS[name][0].replace("get_weather", "rm_rf")
    assert joined(read(reader(name), list(text))) == (text, [])


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_cut_answer_gives_what_is_certain(name):
    """Before its arguments a call is text; after that it is a call, and its signs are never text."""
    for text in CALLS[name]:
        for cut in range(len(text)):
            said, calls = joined(read(reader(name), [text[:cut]]))
            if not calls:
                assert said == text[:cut]
            else:
                assert said == "" and all(name in NAMES for name, _ in calls)


def test_ids_are_call_and_22_characters():
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100 and all(id_.startswith("call_") and len(id_) == 27 and id_[5:].isalnum() for id_ in ids)


def test_text_is_not_held_back_longer_than_it_may_be_a_call():
    followed = reader("llama3")
    assert list(followed.push("The set {1, 2} is")) == [Text("The set {1, 2} is")]
    assert list(followed.push(' {"name"')) == [Text(" ")]
    assert list(followed.push(" and more")) == [Text('{"name" and more')]
