"""OpenAI's own Python client against the server: every call, streams, retries, and the class of each error.

python -m venv JUDGE && JUDGE/bin/pip install openai
JUDGE/bin/python -m tests.judges.openai_client
"""

import asyncio
import base64
import json
import sys
import time
from typing import Literal

import openai
from pydantic import BaseModel

from tests.judges.server import KEY, PICTURE, Checks, server, status

MODEL = "vl2-nano"
HI = [{"role": "user", "content": "How many shapes are there?"}]
URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
SEEN = [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "How many shapes are there?"},
]}]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "count", "description": "Count things.", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False,
}}}  # fmt: skip


class Answer(BaseModel):
    """A form of an answer that ends."""

    shape: Literal["circle", "square"]
    number: Literal[1, 2, 3]


def chat(client: openai.OpenAI, checks: Checks) -> None:
    """Chat completions, whole and in pieces."""
    ask = client.chat.completions.create
    whole = ask(model=MODEL, messages=SEEN, temperature=0)
    checks.holds("a picture is answered", whole.choices[0].message.content)
    checks.holds("usage", whole.usage and whole.usage.prompt_tokens_details.cached_tokens is not None)
    chunks = list(ask(model=MODEL, messages=SEEN, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    checks.holds("a stream is the whole", text == whole.choices[0].message.content)
    checks.holds("usage comes last", chunks[-1].usage.completion_tokens == whole.usage.completion_tokens)
    three = ask(model=MODEL, messages=HI, n=3, temperature=1, max_tokens=5, seed=1)
    checks.holds("n", [choice.index for choice in three.choices] == [0, 1, 2])
    told = ask(model=MODEL, messages=HI, logprobs=True, top_logprobs=5, max_tokens=4, temperature=0)
    checks.holds("logprobs", len(told.choices[0].logprobs.content) == told.usage.completion_tokens)
    checks.holds("top_logprobs", all(len(each.top_logprobs) == 5 for each in told.choices[0].logprobs.content))
    form = client.chat.completions.parse(
        model=MODEL, messages=HI, response_format=Answer, temperature=0, max_tokens=400
    )
    checks.holds("parse", form.choices[0].message.parsed or form.choices[0].finish_reason == "length")
    called = ask(model=MODEL, messages=HI, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=400)
    [call] = called.choices[0].message.tool_calls
    checks.holds("a tool is called", call.function.name == "count" and json.loads(call.function.arguments)["n"] < 10)
    checks.holds("finish_reason tool_calls", called.choices[0].finish_reason == "tool_calls")
    with client.chat.completions.stream(
        model=MODEL, messages=HI, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=400
    ) as stream:
        final = stream.get_final_completion()
    same = final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    checks.holds("a tool is called in a stream", same)
    history = [*HI, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    after = ask(model=MODEL, messages=history, tools=[TOOL], tool_choice="none", max_tokens=5)
    bare = ask(model=MODEL, messages=HI, max_tokens=1)
    checks.holds("a tool's answer is read", after.usage.prompt_tokens > bare.usage.prompt_tokens)
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, max_tokens=1, user="me")
    checks.holds("request id", raw.headers["x-request-id"] and raw.headers["openai-processing-ms"])
    checks.holds("ignored fields are told", raw.headers["x-modelwright-ignored"] == "user")
    boxes = ask(model=MODEL, messages=SEEN[:1], temperature=0, extra_body={"grounding": {"locate": ["the red circle"]}})
    checks.holds("boxes", boxes.choices[0].message.groundings)


def others(client: openai.OpenAI, checks: Checks) -> None:
    """Models, completions and responses."""
    checks.holds("models", [model.id for model in client.models.list()] == [MODEL])
    checks.holds("model", client.models.retrieve(MODEL).id == MODEL)
    go_on = client.completions.create
    done = go_on(model=MODEL, prompt="One, two,", max_tokens=4, echo=True, logprobs=2, temperature=0)
    checks.holds("echo", done.choices[0].text.startswith("One, two,"))
    checks.holds("columns", len(done.choices[0].logprobs.tokens) == done.usage.total_tokens)
    stream = go_on(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, stream=True)
    text = "".join(chunk.choices[0].text for chunk in stream)
    checks.holds("completions in pieces", "One, two," + text == done.choices[0].text)
    said = client.responses.create(model=MODEL, input="How many shapes are there?", temperature=0, max_output_tokens=20)
    checks.holds("responses", said.output_text is not None and said.status in ("completed", "incomplete"))
    events = list(client.responses.create(model=MODEL, input="How many shapes are there?", temperature=0,
                                          max_output_tokens=20, stream=True))  # fmt: skip
    checks.holds("events end in the response", events[-1].response.output_text == said.output_text)
    with client.responses.stream(
        model=MODEL, input="How many shapes are there?", temperature=0, max_output_tokens=20
    ) as followed:
        checks.holds("a followed response", followed.get_final_response().output_text == said.output_text)
    flat = {"type": "function", **TOOL["function"]}
    called = client.responses.create(model=MODEL, input="Count.", tools=[flat], tool_choice="required", temperature=0)
    kinds = [item.type for item in called.output]
    checks.holds("a response calls a tool", kinds == ["function_call"])
    content = [{"type": "input_image", "image_url": URL, "detail": "auto"}, {"type": "input_text", "text": "How many?"}]
    shown = [{"role": "user", "content": content}]
    pictured = client.responses.create(model=MODEL, temperature=0, input=shown)
    checks.holds("a response sees a picture", pictured.output_text)
    further = [*shown, *pictured.output, {"role": "user", "content": "Sure?"}]
    again = client.responses.create(model=MODEL, temperature=0, input=further)
    checks.holds("a response goes on from its own output", again.usage.input_tokens > pictured.usage.total_tokens)


def errors(client: openai.OpenAI, url: str, checks: Checks) -> None:
    """The class of each error, and what it says."""
    ask = client.chat.completions.create
    gone = checks.raises("unknown model", openai.NotFoundError, lambda: ask(model="gpt-9", messages=HI))
    checks.holds("its code", gone and gone.code == "model_not_found" and gone.param == "model")
    bad = checks.raises("n = 0", openai.BadRequestError, lambda: ask(model=MODEL, messages=HI, n=0))
    checks.holds("its param", bad and bad.param == "n" and bad.type == "invalid_request_error")
    long = [{"role": "user", "content": "x " * 20_000}]
    full = checks.raises("too long", openai.BadRequestError, lambda: ask(model=MODEL, messages=long))
    checks.holds("its code", full and full.code == "context_length_exceeded")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    checks.raises("a wrong key", openai.AuthenticationError, lambda: stranger.models.list())
    once = client.with_options(max_retries=0)
    checks.raises("embeddings", openai.InternalServerError, lambda: once.embeddings.create(model=MODEL, input="x"))
    guided = {"extra_body": {"guided_json": {}}}
    checks.raises("guided_json", openai.BadRequestError, lambda: ask(model=MODEL, messages=HI, **guided))


def leaving(client: openai.OpenAI, url: str, checks: Checks) -> None:
    """Whoever leaves costs nothing more."""
    stream = client.chat.completions.create(model=MODEL, messages=HI, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    time.sleep(1)
    checks.holds("a closed stream is ended", status(url)["running"] == 0)
    quick = client.with_options(timeout=0.05, max_retries=0)
    checks.raises("a timeout", openai.APITimeoutError, lambda: quick.chat.completions.create(
        model=MODEL, messages=HI, extra_body={"ignore_eos": True}))  # fmt: skip
    time.sleep(1)
    checks.holds("a request whose client timed out is ended", status(url)["running"] == 0)


async def many(url: str, checks: Checks) -> None:
    """More requests than are taken: the client comes again by itself, and all are answered."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=20)
    asked = [client.chat.completions.create(model=MODEL, messages=HI, max_tokens=20, seed=n) for n in range(40)]
    replies = await asyncio.gather(*asked)
    checks.holds("all of 40 are answered where 12 have room", all(reply.choices for reply in replies))


def main() -> int:
    checks = Checks()
    with server(MODEL, "--max-batch", "4", "--max-queue", "8") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
        chat(client, checks)
        others(client, checks)
        errors(client, url, checks)
        leaving(client, url, checks)
        asyncio.run(many(url, checks))
    print(f"openai {openai.__version__}")
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
