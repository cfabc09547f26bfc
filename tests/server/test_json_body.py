"""Bodies that are no JSON, or JSON that two readers would read differently: refused with the place, at bounded cost."""

import json
import time

import msgspec
import pytest

from modelwright.server.json_body import DEEPEST, as_struct, read_json
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[1]", "must be a JSON object, got a list"),
        (b"null", "got null"),
        (b'"text"', "got text"),
        (b"3", "got a number"),
        (b"true", "got true or false"),
        (b'{"a": NaN}', "the body holds NaN, which JSON does not have"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "holds 1e999, which is more than a float64 holds"),
        (b'{"a": 1, "a": 2}', "an object with the name 'a' twice"),
        (b'{"m": [{"role": 1, "x": 2, "role": 3}]}', "an object with the name 'role' twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"a": "\xff"}', "the body is not UTF-8: byte 8 is 0xff"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "too many digits"),
        (b'{"a": 1} x', "the body is not JSON: Extra data"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", f"nested deeper than {DEEPEST}"),
    ],
    ids=range(20),
)
def test_what_is_no_strict_json_is_refused(body, said):
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json") and said in caught.value.message


def test_what_is_strict_json_is_read():
    value = {"a": [1, 2.5, None, True, {"b": "é😀"}], "c": "\ufdd0"}
    assert read_json(json.dumps(value).encode()) == value
    deep = b'{"a": ' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    assert list(read_json(deep)) == ["a"]


def test_a_repeated_key_among_many_is_found_in_linear_time():
    body = b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b',"k99999":2}'
    start = time.process_time()
    with pytest.raises(ApiError, match="'k99999' twice"):
        read_json(body)
    assert time.process_time() - start < 5  # the square of it would be an hour


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"messages": None}, "invalid_value", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"content": "hi"}]}, "missing_field", "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, "missing_field", "messages[1].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages[0].content"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": -1}, "invalid_value", "n"),
        ({"n": "3"}, "invalid_value", "n"),
        ({"n": 3.5}, "invalid_value", "n"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"temperature": True}, "invalid_value", "temperature"),
        ({"top_logprobs": -1}, "invalid_value", "top_logprobs"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"stop": ["a" * 257]}, "invalid_value", "stop"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "invalid_value", "logit_bias"),
        ({"stream": "yes"}, "invalid_value", "stream"),
        ({"stream_options": {"include_usage": 1}}, "invalid_value", "stream_options.include_usage"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"priority": 9}, "invalid_value", "priority"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_of_the_wrong_type_or_range_is_named(changes, code, param):
    with pytest.raises(ApiError) as caught:
        as_struct({"messages": [USER], **changes}, ChatRequest)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert caught.value.param is not None and caught.value.param.startswith(param)
    assert "`" not in caught.value.message and caught.value.message[0].islower()


def test_null_is_a_field_that_is_left_out():
    names = [name for name in ChatRequest.__struct_fields__ if name not in ("messages", "model")]
    read = as_struct({"messages": [USER], **dict.fromkeys(names)}, ChatRequest)
    assert msgspec.structs.asdict(read) == msgspec.structs.asdict(as_struct({"messages": [USER]}, ChatRequest))
