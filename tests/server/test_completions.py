"""Completions: prompts in four forms, echo and log-probabilities in OpenAI's older columns, streams, and bounds."""

import asyncio

import pytest

from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Update
from modelwright.server.completion_text import CompletionText
from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, running

TEXT = "Once upon a tïme"


def ask(**fields):
    return {"model": "tiny", "prompt": TEXT, "temperature": 0, "max_tokens": 12} | fields


def asked(*bodies, settings=None):
    async def main():
        async with running(llama(), settings) as server:
            return [await server.client.post(COMPLETIONS, body) for body in bodies]

    return asyncio.run(main())


def alone(prompts, **params):
    engine = Engine(llama().model, EngineConfig(num_pages=512), llama().tokenizer)
    return engine.generate(prompts, SamplingParams(**{"temperature": 0, "max_tokens": 12} | params))


def ids_of(text):
    return llama().tokenizer.encode(text)


def test_the_four_forms_of_a_prompt_are_one_answer():
    ids = ids_of(TEXT)
    forms = [TEXT, [TEXT], ids, [ids]]
    replies = asked(*(ask(prompt=form) for form in forms))
    [expected] = alone([ids])
    for reply in replies:
        [choice] = reply.json()["choices"]
        assert choice["text"] == expected.text and choice["finish_reason"] == "length"
        assert reply.json()["usage"]["prompt_tokens"] == len(ids)


def said_by(reply):
    """The text of a reply or a stream, and why it ended."""
    choices = [frame["choices"][0] for frame in reply.frames()[:-1]] or reply.json()["choices"]
    spoken = [choice.get("message") or choice.get("delta") or choice for choice in choices]
    text = "".join(each.get("content") or each.get("text") or "" for each in spoken)
    return text, choices[-1]["finish_reason"], choices[-1].get("stop_reason")


def test_a_stop_text_inside_of_the_end_token_leaves_it_whole():
    end = llama().tokenizer.convert_tokens_to_ids("<|im_end|>")
    fields = {"logit_bias": {str(end): 1000.0}, "min_tokens": 3, "stop": ["end", "_"], "skip_special_tokens": False}
    ways = [(kept, stream) for kept in (False, True) for stream in (False, True)]
    asks = [{"include_stop_str_in_output": kept, "stream": stream} | fields for kept, stream in ways]

    async def main():
        async with running(llama()) as server:
            hi = {"prompt": None, "messages": [{"role": "user", "content": "Hi"}]}
            found = [await server.client.post(COMPLETIONS, ask(**each)) for each in asks]
            return found, [await server.client.post(CHAT, ask(**each) | hi) for each in asks]

    for replies in asyncio.run(main()):
        cut, _, kept, _ = said = [said_by(reply) for reply in replies]
        assert said == [cut, cut, kept, kept] and kept == (cut[0] + "<|im_end|>", "stop", None)


def test_several_prompts_and_n_are_choices_in_order():
    prompts = ["one", "two", "three"]
    whole, streamed = asked(
        ask(prompt=prompts, n=2, temperature=1, seed=9), ask(prompt=prompts, n=2, temperature=1, seed=9, stream=True)
    )
    results = alone([ids_of(prompt) for prompt in prompts], n=2, temperature=1, seed=9)
    expected = [done.text for result in results for done in result.completions]
    assert [choice["text"] for choice in whole.json()["choices"]] == expected
    assert [choice["index"] for choice in whole.json()["choices"]] == list(range(6))
    frames = streamed.frames()
    texts = [""] * 6
    for frame in frames[:-1]:
        for choice in frame["choices"]:
            texts[choice["index"]] += choice["text"]
    assert frames[-1] == "[DONE]" and texts == expected


def test_no_max_tokens_is_sixteen():
    [reply] = asked({"model": "tiny", "prompt": TEXT, "temperature": 0, "ignore_eos": True})
    assert reply.json()["usage"]["completion_tokens"] == 16


def test_echo_and_logprobs_are_those_of_the_engine():
    """As lm-eval asks: nothing drawn, all of the prompt told."""
    body = ask(max_tokens=0, echo=True, logprobs=3)
    whole, streamed, drawn = asked(body, body | {"stream": True}, ask(echo=True, logprobs=3, max_tokens=4))
    [expected] = alone([ids_of(TEXT)], max_tokens=1, prompt_logprobs=3)
    [choice] = whole.json()["choices"]
    told = choice["logprobs"]
    assert choice["text"] == TEXT and choice["finish_reason"] == "length"
    assert told["token_logprobs"] == [None, *(each.logprob for each in expected.prompt_logprobs)]
    assert told["top_logprobs"][0] is None and all(0 < len(top) <= 4 for top in told["top_logprobs"][1:])
    assert len(told["tokens"]) == len(told["text_offset"]) == len(ids_of(TEXT))
    assert told["text_offset"] == sorted(told["text_offset"])
    assert whole.json()["usage"]["completion_tokens"] == 0
    frames = streamed.frames()
    assert "".join(frame["choices"][0]["text"] for frame in frames[:-1]) == TEXT
    columns = [frame["choices"][0]["logprobs"] for frame in frames[:-1]]
    assert [each for column in columns for each in column["token_logprobs"]] == told["token_logprobs"]
    [more] = drawn.json()["choices"]
    assert more["text"].startswith(TEXT) and len(more["logprobs"]["tokens"]) == len(ids_of(TEXT)) + 4


def test_the_token_that_stands_there_is_among_the_likeliest_and_offsets_lie_in_the_text():
    """As OpenAI says of `logprobs`; a part of a character begins where that does."""
    text = "A tïny 🙂 b<|im_end|>c"
    [choice] = [
        reply.json()["choices"][0]
        for reply in asked(ask(prompt=text, echo=True, logprobs=1, max_tokens=6, temperature=2, seed=3))
    ]
    told = choice["logprobs"]
    columns = zip(told["tokens"][1:], told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True)
    assert all(top[token] >= own for token, own, top in columns)
    prompt = len(ids_of(text))
    for token, start in zip(told["tokens"][:prompt], told["text_offset"][:prompt], strict=True):
        assert "\ufffd" in token or choice["text"].startswith(token, start)
    assert told["text_offset"][prompt] == len(text) and told["text_offset"][prompt - 1] == len(text) - 1


def test_marks_around_a_prompt_and_the_blank_before_it_are_no_characters_of_its_text():
    class Texts:
        special = frozenset({1})

        def of(self, token):
            raw = {1: b"<s>", 2: b" The", 3: b"\xf0\x9f", 4: b"\x99\x82", 5: b" end"}[token]
            return raw.decode("utf-8", "replace"), list(raw)

    def update(*tokens):
        own = tuple(TokenLogprobs(token, -1.0, 1, ()) for token in tokens)
        return Update("r", 0, "", tokens, own)

    choice = CompletionText("The🙂", Texts(), 0)
    told = tuple(TokenLogprobs(token, -1.0, 1, ()) for token in (2, 3, 4))
    _, columns = choice.take(update(5), (1, 2, 3, 4), told)
    _, more = choice.take(update(1, 5), (1, 2, 3, 4), None)
    assert columns.offsets + more.offsets == [0, 0, 3, 3, 4, 8, 8]


def test_prompt_logprobs_in_vllms_form():
    [reply] = asked(ask(prompt_logprobs=2))
    rows = reply.json()["choices"][0]["prompt_logprobs"]
    ids = ids_of(TEXT)
    assert rows[0] is None and len(rows) == len(ids)
    for row, token in zip(rows[1:], ids[1:], strict=True):
        assert str(token) in row and 2 <= len(row) <= 3
        assert {"logprob", "rank", "decoded_token"} == row[str(token)].keys()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
        ({"prompt": [1, "a"]}, "invalid_value", "prompt[0]"),
        ({"prompt": [True, 2]}, "invalid_value", "prompt[0]"),
        ({"prompt": [-1]}, "invalid_value", "prompt[0]"),
        ({"prompt": [10**9]}, "invalid_value", None),
        ({"prompt": [10**30]}, "invalid_value", "prompt[0]"),
        ({"prompt": ["a"] * 65}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, "invalid_value", "prompt"),
        ({"prompt": "x" * 2**20 + "x"}, "invalid_value", "prompt"),
        ({"prompt": "x" * 2000}, "context_length_exceeded", "prompt"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"prompt_logprobs": 21}, "invalid_value", "prompt_logprobs"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"grounding": {}}, "unsupported_parameter", "grounding"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_completed_is_refused(fields, code, param):
    [reply] = asked(ask(**fields))
    assert reply.status == 400, reply.body
    assert reply.error["code"] == code and (param is None or reply.error["param"] == param)


def test_a_bad_prompt_among_good_ones_lets_none_begin():
    async def main():
        async with running(llama()) as server:
            reply = await server.client.post(COMPLETIONS, ask(prompt=["a", "x" * 2000]))
            return reply, server.engine.waiting + server.engine.running

    reply, left = asyncio.run(main())
    assert reply.error["code"] == "context_length_exceeded" and left == 0
