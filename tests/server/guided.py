"""Answers of random logits that a guide alone holds, for tests of forms and tools: the mask does all the work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from modelwright import zoo
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.params import Guide
from modelwright.server.constraints import Guiding
from modelwright.server.events import CallArguments, CallStart, Event, Reader, Text
from modelwright.server.tools.dialects import DEEPSEEK, JSON, LLAMA3, Dialect

TOKENIZER = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))
TOKENIZER.add_special_tokens({"additional_special_tokens": [AddedToken(name) for name in DEEPSEEK.tokens]})
END = TOKENIZER.eos_token_id
PROMPT = TOKENIZER.encode("Answer:", add_special_tokens=False)
COMPILER = GuideCompiler(TOKENIZER, [END])
PLAIN = Guiding.of(TOKENIZER, None)
DIALECTS = {
    "llama3": LLAMA3,
    "deepseek": DEEPSEEK,
    "json": replace(JSON, prints_tools=False, prints_calls=False),
}
CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", 'Ro"me\\{', "東京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
    {
        "type": "function",
        "function": {
            "name": "get_weather-2",
            "parameters": {"properties": {"at": {"$ref": "#/$defs/at"}}, "$defs": {"at": {"type": "boolean"}}},
            "strict": True,
        },
    },
]


def guiding(dialect: Dialect) -> Guiding:
    return replace(PLAIN, dialect=dialect)


@cache
def _bias() -> torch.Tensor:
    """Against white space, of which random logits draw more than anything else, and for what ends things."""
    bias = torch.zeros(len(TOKENIZER))
    for id_ in range(len(TOKENIZER)):
        text = TOKENIZER.decode([id_])
        bias[id_] = -3.0 if text.isspace() else 1.5 if text and all(each in '"}]' for each in text) else 0.0
    bias[END] = 3.0
    return bias


def draw(
    guide: Guide, seed: int, most: int = 150, bias: Mapping[int, float] | None = None, begins: str = ""
) -> tuple[str, bool]:
    """An answer that begins so and goes on with the best tokens of random scores among those that `guide` allows.

    Returns:
        The answer, special tokens shown, and whether it came to its end.
    """
    follower, tokens = COMPILER.start(guide, len(PROMPT)), list(PROMPT)
    liked = _bias().clone()
    for id_, more in (bias or {}).items():
        liked[id_] += more
    given = TOKENIZER.encode(begins, add_special_tokens=False)
    generator = torch.Generator().manual_seed(seed)
    ended = False
    while not ended and len(tokens) < len(PROMPT) + most:
        allowed = follower.allowed(tokens)
        scores = liked + torch.randn(len(liked), generator=generator)
        if allowed is not None:
            assert allowed.any(), (follower.error, TOKENIZER.decode(tokens))
            scores[~allowed[: len(scores)]] = -torch.inf
        drawn = len(tokens) - len(PROMPT)
        token = int(scores.argmax()) if drawn >= len(given) else given[drawn]
        assert scores[token] > -torch.inf, f"{TOKENIZER.decode([token])!r} may not follow {TOKENIZER.decode(tokens)!r}"
        ended = token == END
        if not ended:
            tokens.append(token)
            ended = follower.ended(tokens)
    return TOKENIZER.decode(tokens[len(PROMPT) :], skip_special_tokens=False), ended


def read(reader: Reader, pieces: Sequence[str]) -> list[Event]:
    """What a reader makes of a text that comes in pieces."""
    return [event for piece in pieces for event in reader.push(piece)] + list(reader.finish())


def joined(events: Sequence[Event]) -> tuple[str, list[tuple[str, str]]]:
    """The text of events, and the names and arguments of calls."""
    starts = [event for event in events if isinstance(event, CallStart)]
    arguments = [""] * len(starts)
    for event in events:
        if isinstance(event, CallArguments):
            arguments[event.index] += event.text
    text = "".join(event.text for event in events if isinstance(event, Text))
    return text, [(start.name, arguments[start.index]) for start in starts]


def parsed(events: Sequence[Event]) -> tuple[str, list[tuple[str, Any]]]:
    text, calls = joined(events)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]
