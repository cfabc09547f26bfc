"""litellm, instructor and LangChain against the server: tools, schemas, usage and pictures as their users ask for them.

python -m venv JUDGE && JUDGE/bin/pip install litellm mcp instructor langchain-openai
JUDGE/bin/python -m tests.judges.agents
"""

import sys
from importlib.metadata import version
from typing import Any, Literal

import instructor
import litellm
import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.judges.openai_client import HI, MODEL, SEEN, TOOL, URL
from tests.judges.server import KEY, Checks, server


class Shape(BaseModel):
    """What is to be written."""

    colour: Literal["red", "green", "blue"]
    sides: int = Field(ge=0, le=9)


@tool
def count(n: Literal[1, 2, 3]) -> int:
    """Count to n."""
    return n


def by_litellm(url: str, checks: Checks) -> None:
    """litellm's calls, with the prefix that it asks for."""
    common: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": KEY, "temperature": 0}
    whole = litellm.completion(messages=SEEN, **common)
    checks.holds("litellm: a picture", whole.choices[0].message.content)
    chunks = list(litellm.completion(messages=SEEN, stream=True, stream_options={"include_usage": True}, **common))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    checks.holds("litellm: a stream", text == whole.choices[0].message.content)
    checks.holds("litellm: usage", chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens)
    called = litellm.completion(messages=HI, tools=[TOOL], tool_choice="required", max_tokens=1500, **common)
    checks.holds("litellm: a tool", called.choices[0].message.tool_calls[0].function.name == "count")
    form = litellm.completion(messages=HI, response_format=Shape, max_tokens=1500, **common)
    checks.holds("litellm: a schema", Shape.model_validate_json(form.choices[0].message.content))
    checks.raises(
        "litellm: a context that is too long",
        litellm.exceptions.BadRequestError,
        lambda: litellm.completion(messages=[{"role": "user", "content": "x " * 20_000}], **common),
    )


def by_instructor(url: str, checks: Checks) -> None:
    """Each of its ways to ask for a form."""
    raw = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):  # its JSON asks in words alone
        client = instructor.from_openai(raw, mode=mode)
        try:
            shape = client.chat.completions.create(
                model=MODEL, messages=HI, response_model=Shape, max_retries=0, temperature=0, max_tokens=1500
            )
            checks.holds(f"instructor: {mode.name}", isinstance(shape, Shape))
        except Exception as error:
            checks.holds(f"instructor: {mode.name}: {error!r:.200}", False)


def by_langchain(url: str, checks: Checks) -> None:
    """Its chat model."""
    model = ChatOpenAI(
        model=MODEL, base_url=f"{url}/v1", api_key=KEY, temperature=0, max_tokens=1500, stream_usage=True
    )
    content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "How many shapes are there?"}]
    whole = model.invoke([("user", content)])
    checks.holds("langchain: a picture", whole.content)
    pieces = list(model.stream([("user", content)]))
    checks.holds("langchain: a stream", "".join(piece.content for piece in pieces) == whole.content)
    told = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    checks.holds("langchain: usage", told[-1]["input_tokens"] == whole.usage_metadata["input_tokens"])
    called = model.bind_tools([count], tool_choice="any").invoke("Count.")
    checks.holds("langchain: a tool", called.tool_calls[0]["name"] == "count")
    for method in ("json_schema", "function_calling"):
        shape = model.with_structured_output(Shape, method=method).invoke("Which shape?")
        checks.holds(f"langchain: {method}", isinstance(shape, Shape))


def main() -> int:
    checks = Checks()
    with server(MODEL) as url:
        by_litellm(url, checks)
        by_instructor(url, checks)
        by_langchain(url, checks)
    print(", ".join(f"{name} {version(name)}" for name in ("litellm", "instructor", "langchain-openai")))
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
