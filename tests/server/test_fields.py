"""Every field of a request is honoured, refused, or ignored and told; the specification's tables stand here again."""

import pytest

from modelwright.server.fields import IGNORED, REFUSED, check_fields, ignored_header
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import CompletionRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.responses import ResponsesRequest
from modelwright.server.wire.tokens import TokenizeRequest

HONOURED = [
    "model",
    "messages",
    "max_completion_tokens",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "n",
    "stop",
    "logprobs",
    "top_logprobs",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
    "priority",
    "cache_salt",
    "add_generation_prompt",
    "continue_final_message",
    "response_format",
    "structured_outputs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "grounding",
    "stream",
    "stream_options",
    "chat_template_kwargs",
    "timeout",
    "include_timings",
]
WITHOUT_EFFECT = [
    "reasoning_effort",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prediction",
    "verbosity",
]
NOT_HERE = [
    "audio",
    "web_search_options",
    "functions",
    "function_call",
    "best_of",
    "use_beam_search",
    "chat_template",
    "prompt_embeds",
    "echo",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "grammar",
    "json_schema",
    "format",
    "options",
    "num_ctx",
    "think",
    "keep_alive",
    "lora",
    "lora_path",
    "lora_request",
    "adapter_id",
]


def test_the_honoured_fields_are_those_of_the_specification():
    assert set(ChatRequest.__struct_fields__) == set(HONOURED)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_without_effect_is_told(name):
    assert name in IGNORED
    assert check_fields({"messages": [], name: "x"}, ChatRequest, strict=True) == (name,)


@pytest.mark.parametrize("name", NOT_HERE)
def test_a_field_that_would_change_the_answer_is_refused_with_what_to_use(name):
    with pytest.raises(ApiError) as caught:
        check_fields({name: {"x": 1}}, ChatRequest, strict=False)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert error.message.startswith(f"{name} is not supported: ") and error.message[-1] not in ": "


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"best_of": 1, "use_beam_search": False, "store": False, "echo": False}, ChatRequest),
        ({"audio": None, "functions": None, "guided_json": None}, ChatRequest),
        ({"modalities": ["text"], "think": False}, ChatRequest),
        ({"best_of": 1, "tools": []}, CompletionRequest),
        ({"background": False}, ResponsesRequest),
    ],
    ids=range(5),
)
def test_what_asks_for_nothing_is_no_request(body, kind):
    assert check_fields(body, kind, strict=True) == ()


IDLE_ELSEWHERE = {
    ChatRequest: {"metadata"},
    CompletionRequest: {"parallel_tool_calls", "metadata", "chat_template_kwargs", "add_generation_prompt"}
    | {"continue_final_message"},
    ResponsesRequest: {"include_timings", "stream_options"},
}
"""Fields of one path that change no answer of another: they are told."""


@pytest.mark.parametrize("kind", IDLE_ELSEWHERE)
def test_a_field_of_another_path_acts_or_is_refused(kind):
    others = {name for other in IDLE_ELSEWHERE for name in other.__struct_fields__} - set(kind.__struct_fields__)
    assert {name for name in others if name not in REFUSED[kind]} == IDLE_ELSEWHERE[kind]


@pytest.mark.parametrize(("name", "value"), [("store", True), ("best_of", 2), ("best_of", True), ("echo", 0)])
def test_anything_but_the_default_is_refused(name, value):
    with pytest.raises(ApiError, match="is not supported"):
        check_fields({name: value}, ChatRequest, strict=False)


def test_unknown_fields_inside_are_told_and_what_clients_send_back_is_not():
    message = {"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}], "mood": "glad"}
    back = {"role": "assistant", "content": "a", "refusal": None, "audio": None, "annotations": []}
    body = {"messages": [message, back], "stream_options": {"include_obfuscation": False}, "logit_bias": {"1": 2}}
    told = ("messages[0].content[0].colour", "messages[0].mood", "stream_options.include_obfuscation")
    assert sorted(check_fields(body, ChatRequest, strict=False)) == sorted(told)
    with pytest.raises(ApiError, match="there is no field") as caught:
        check_fields(body, ChatRequest, strict=True)
    assert caught.value.code == "unknown_field" and caught.value.param in told


@pytest.mark.parametrize(
    "body", [{"messages": 3}, {"messages": [3, None, {"role": "wizard", "x": 1}]}, {"stop": {"a": 1}}]
)
def test_what_is_malformed_inside_is_left_to_the_types(body):
    assert check_fields(body, ChatRequest, strict=False) == ()


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_options_of_a_stream_are_refused_without_one(kind):
    """As OpenAI does; those that ask for nothing may stand."""
    for name in ("include_usage", "continuous_usage_stats", "include_progress", "include_obfuscation"):
        asked, idle = {"stream_options": {name: True}}, {"stream_options": {name: False}}
        for body in (asked, asked | {"stream": False}, asked | {"stream": None}):
            with pytest.raises(ApiError, match=f"stream_options.{name} .* set stream to true") as caught:
                check_fields(body, kind, strict=False)
            assert (caught.value.status, caught.value.param) == (400, "stream_options")
        told = ("stream_options.include_obfuscation",) if name == "include_obfuscation" else ()
        for body in (asked | {"stream": True}, idle, idle | {"stream": False}, {"stream_options": None}):
            assert check_fields(body, kind, strict=False) == (() if body["stream_options"] is None else told)
    told = check_fields({"stream_options": {"include_usage": True}}, ResponsesRequest, strict=False)
    assert told == ("stream_options",)


FOO = {"type": "function", "foo": 1, "function": {"name": "f"}}
NO_NAME = {"type": "function", "nam": "f"}
INSIDE = [
    ({"tools": [{"type": "function", "foo": 1, "function": {"name": "f", "paramters": {}}}]}, ChatRequest),
    ({"response_format": {"type": "json_schema", "foo": 1, "json_schema": {"schema": {}, "bar": 2}}}, ChatRequest),
    ({"tool_choice": {"type": "function", "function": {"name": "f", "foo": 1}, "bar": 2}}, ChatRequest),
    ({"tools": [{"type": "function", "name": "f", "paramters": {}}]}, ResponsesRequest),
    ({"text": {"format": {"type": "json_object", "shema": {}}}}, ResponsesRequest),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [NO_NAME]}}, ResponsesRequest),
    ({"messages": [{"role": "user", "content": "a", "colour": 1}], "tools": [FOO]}, TokenizeRequest),
]
TOLD_INSIDE = [
    ["tools[0].foo", "tools[0].function.paramters"],
    ["response_format.foo", "response_format.json_schema.bar"],
    ["tool_choice.function.foo", "tool_choice.bar"],
    ["tools[0].paramters"],
    ["text.format.shema"],
    ["tool_choice.tools[0].nam"],
    ["messages[0].colour", "tools[0].foo"],
]


@pytest.mark.parametrize(("asked", "told"), list(zip(INSIDE, TOLD_INSIDE, strict=True)), ids=range(len(INSIDE)))
def test_unknown_fields_of_plain_objects_are_told(asked, told):
    body, kind = asked
    assert sorted(check_fields(body, kind, strict=False)) == sorted(told)
    with pytest.raises(ApiError, match="there is no field"):
        check_fields(body, kind, strict=True)


def test_what_a_schema_says_is_its_own():
    schema = {"type": "object", "properties": {"a": {"foo": 1}}, "foo": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True, "description": "d"}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": schema, "strict": True}}
    assert check_fields({"tools": [tool], "response_format": form}, ChatRequest, strict=True) == ()
    assert check_fields({"structured_outputs": {"json": schema}}, ChatRequest, strict=True) == ()


def test_service_tiers():
    assert check_fields({"service_tier": "auto"}, ChatRequest, strict=True) == ("service_tier",)
    with pytest.raises(ApiError, match="service_tier"):
        check_fields({"service_tier": "priority"}, ChatRequest, strict=False)


def test_an_unknown_field_is_told_or_refused_as_the_server_is_set():
    assert check_fields({"temprature": 1, "zzz": 2}, ChatRequest, strict=False) == ("temprature", "zzz")
    with pytest.raises(ApiError, match="did you mean temperature") as caught:
        check_fields({"temprature": 1}, ChatRequest, strict=True)
    assert (caught.value.code, caught.value.param) == ("unknown_field", "temprature")


def test_the_header_holds_names_and_nothing_that_could_be_another_header():
    names = ("user", "a\r\nset-cookie: x", "é", "b,c", *(f"n{at}" for at in range(20)))
    said = ignored_header(names)["x-modelwright-ignored"]
    assert said.isascii() and said.isprintable() and len(said.split(", ")) == 16
    assert ignored_header(()) == {}


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, ResponsesRequest])
def test_no_field_has_two_rules(kind):
    honoured = set(kind.__struct_fields__)
    assert not honoured & REFUSED[kind].keys() and not REFUSED[kind].keys() & IGNORED
