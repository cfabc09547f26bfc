"""What the fields of a request may hold beyond what the Structs' types say, as JSON schemas.

``/openapi.json`` shows them, and `inner_fields` knows plain objects by them. Each states a rule that is checked where
the field is read, with its number from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from modelwright.configs.limits import LARGEST_FLOAT, LARGEST_INT, SAMPLING
from modelwright.server.forms import MOST_CHOICES, MOST_TEXT
from modelwright.server.response_input import LOGPROBS, NEVER_INCLUDED
from modelwright.server.settings import ServerSettings
from modelwright.server.tags import LONGEST_TAG, MOST_TAGS
from modelwright.server.tools.request import MOST_TOOLS, NAME
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import LONGEST_PROMPT, MOST_PROMPTS, CompletionRequest
from modelwright.server.wire.grounding import LONGEST_NAME, MAX_NAMES, GroundingOptions
from modelwright.server.wire.responses import MessageItem, ResponsesRequest, TextSettings
from modelwright.server.wire.tokens import MOST_TOKENS, DetokenizeRequest, TokenizeRequest

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": MOST_TEXT}
_TAG: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_TAG}
_JSON_SCHEMA: Schema = {"type": "object"}
_NAME: Schema = {"type": "string", "pattern": f"^{NAME.pattern}$"}


@dataclass(frozen=True)
class Bounds:
    """What a server's settings and its model bound.

    Attributes:
        vocabulary: how many tokens the model computes scores of.
        written: how many its tokenizer can write.
    """

    settings: ServerSettings
    vocabulary: int
    written: int

    @property
    def token(self) -> Schema:
        return {"type": "integer", "minimum": 0, "maximum": self.vocabulary - 1}


def exact(components: Mapping[str, Schema], bounds: Bounds) -> dict[str, Schema]:
    """The schemas of Structs by their names, those of requests with the rules that their types do not say."""
    known = {kind.__name__: fields(bounds) for kind, fields in _FIELDS.items()}
    found = {name: _exact(schema, known[name]) if name in known else schema for name, schema in components.items()}
    message = found[MessageItem.__name__]
    untyped = message | {"required": [name for name in message["required"] if name != "type"]}
    return found | {MessageItem.__name__: untyped}  # as `with_types` takes it


@cache
def objects_of(kind: type) -> Mapping[str, Schema]:
    """Schemas of the fields that are plain objects to the Struct, or hold such, by their names."""
    return _FIELDS.get(kind, lambda _: {})(Bounds(ServerSettings(), 1, 1))


def _exact(schema: Schema, own: Mapping[str, Schema]) -> Schema:
    found = {name: _field(name, each, own.get(name)) for name, each in schema["properties"].items()}
    return schema | {"properties": found}


def _field(name: str, schema: Schema, own: Schema | None) -> Schema:
    """A field by a schema in the place of its type's, or with bounds for the number that it may be."""
    kinds = schema.get("anyOf", [schema])
    if own is not None:
        found = [own, *(kind for kind in kinds if kind == _NULL)]
    else:
        found = [_bounded(name, kind) for kind in kinds]
    default = {"default": schema["default"]} if "default" in schema else {}
    return ({"anyOf": found} if len(found) > 1 else found[0]) | default


def _bounded(name: str, schema: Schema) -> Schema:
    """A number with the range of the sampler's field of this name, where its type says none."""
    limit = SAMPLING.get(name)
    if limit is None or schema.get("type") not in ("integer", "number"):
        return schema
    cap = limit.cap or (LARGEST_INT if schema["type"] == "integer" else LARGEST_FLOAT)
    least = {"minimum": limit.least} if limit.above is None else {"exclusiveMinimum": limit.above}
    return least | {"maximum": cap if limit.most is None else limit.most} | schema


def _object(required: Mapping[str, Schema], **further: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **further}, "required": list(required)}


def _list(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _most(number: int) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": number}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_NAMED = _object({"type": {"const": "function"}, "function": _object({"name": _NAME})})
_DESCRIBED: Mapping[str, Schema] = {"name": {"type": "string"}, "schema": _JSON_SCHEMA}
_ABOUT: Mapping[str, Schema] = {"description": {}, "strict": _FLAG}


def _drawing(bounds: Bounds) -> dict[str, Schema]:
    """Of what chat, completions and responses say alike."""
    bias = {"type": "number", "minimum": -LARGEST_FLOAT, "maximum": LARGEST_FLOAT}
    ids = {"type": "string", "pattern": "^[0-9]{1,11}$"}
    return {
        "seed": {"type": "integer"},  # of any size: it is taken modulo what the sampler takes
        "max_tokens": {"type": "integer", "minimum": 0},  # what the context does not hold is not asked for
        "stop_token_ids": {"type": "array", "items": bounds.token},
        "logit_bias": {"type": "object", "propertyNames": ids, "additionalProperties": bias},
        "bad_words": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "structured_outputs": _structured_outputs(),
    }


def _sampling(bounds: Bounds) -> dict[str, Schema]:
    return _drawing(bounds) | {
        "n": {"type": "integer", "minimum": 1, "maximum": bounds.settings.max_n},
        "prompt_logprobs": _most(bounds.settings.max_logprobs),
        "response_format": _format({"json_schema": _object(_DESCRIBED, **_ABOUT)}),
    }


def _chat(bounds: Bounds) -> dict[str, Schema]:
    return _sampling(bounds) | {
        "max_tokens": {"type": "integer", "minimum": 1},
        "top_logprobs": _most(bounds.settings.max_logprobs),
        "tools": _tools(),
        "tool_choice": _tool_choice(_NAMED),
    }


def _completions(bounds: Bounds) -> dict[str, Schema]:
    text = {"type": "string", "minLength": 1, "maxLength": LONGEST_PROMPT}
    ids = {"type": "array", "items": bounds.token, "minItems": 1}
    return _sampling(bounds) | {
        "prompt": _either(text, ids, _list(_either(text, ids), MOST_PROMPTS, 1)),
        "logprobs": _most(bounds.settings.max_logprobs),
        "suffix": {"type": "string", "maxLength": 0},
    }


def _responses(bounds: Bounds) -> dict[str, Schema]:
    named = _either(_object({"type": {"const": "function"}, "name": _NAME}), _NAMED)
    flat = _object({"type": {"const": "allowed_tools"}, **_allowed(named)})
    kept = bounds.settings.responses_store > 0
    return _drawing(bounds) | {
        "tools": _list(_object({"type": {"const": "function"}, "name": _NAME}, **_of_function()), MOST_TOOLS),
        "tool_choice": _either(_tool_choice(named), flat),
        "top_logprobs": _most(bounds.settings.max_logprobs),
        "include": {"type": "array", "items": {"enum": [LOGPROBS, *NEVER_INCLUDED]}},
        "store": {"type": "boolean"} if kept else {"const": False},
    }


def _text_settings(bounds: Bounds) -> dict[str, Schema]:
    return {"format": _format(_DESCRIBED, **_ABOUT)}


def _grounding(bounds: Bounds) -> dict[str, Schema]:
    name = {"type": "string", "maxLength": LONGEST_NAME, "pattern": r"\S"}
    return {"locate": _list(name, MAX_NAMES)}


def _detokenize(bounds: Bounds) -> dict[str, Schema]:
    written = {"type": "integer", "minimum": 0, "maximum": bounds.written - 1}
    return {"tokens": {"type": "array", "items": written, "maxItems": MOST_TOKENS}}


def _format(by_schema: Mapping[str, Schema], **further: Schema) -> Schema:
    """Of ``response_format``.

    Args:
        by_schema, further: what stands beside the type ``json_schema``, which must be there and which may.
    """
    return _either(
        _object({"type": {"const": "text"}}),
        _object({"type": {"const": "json_object"}}, schema=_either(_JSON_SCHEMA, _NULL)),
        _object({"type": {"const": "json_schema"}, **by_schema}, **further),
        _object({"type": {"const": "structural_tag"}, **_tags()}),
    )


def _tags() -> dict[str, Schema]:
    tag = _object({"begin": _TAG, "schema": _JSON_SCHEMA, "end": _TAG | {"minLength": 0}})
    return {"structures": _list(tag, MOST_TAGS, 1), "triggers": _list(_TAG, MOST_TAGS, 1)}


def _structured_outputs() -> Schema:
    kinds = {
        "json": _either(_JSON_SCHEMA, _TEXT),
        "regex": _TEXT,
        "choice": _list(_TEXT, MOST_CHOICES, 1),
        "grammar": _TEXT,
        "json_object": {"const": True},
        "structural_tag": _either(_object(_tags()), _TEXT),
    }
    return {
        "type": "object",
        "properties": kinds,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }


def _of_function() -> dict[str, Schema]:
    return {"description": {"type": ["string", "null"]}, "parameters": _either(_JSON_SCHEMA, _NULL), "strict": _FLAG}


def _tools() -> Schema:
    function = _object({"name": _NAME}, **_of_function())
    return _list(_object({"type": {"const": "function"}, "function": function}), MOST_TOOLS)


def _tokenize(bounds: Bounds) -> dict[str, Schema]:
    return {"tools": _tools()}


def _tool_choice(named: Schema) -> Schema:
    several = _object({"type": {"const": "allowed_tools"}, "allowed_tools": _object(_allowed(named))})
    return _either({"enum": ["none", "auto", "required"]}, named, several)


def _allowed(named: Schema) -> dict[str, Schema]:
    return {"mode": {"enum": ["auto", "required"]}, "tools": _list(named, MOST_TOOLS, 1)}


_FIELDS: Mapping[type, Callable[[Bounds], dict[str, Schema]]] = {
    ChatRequest: _chat,
    CompletionRequest: _completions,
    ResponsesRequest: _responses,
    TextSettings: _text_settings,
    GroundingOptions: _grounding,
    TokenizeRequest: _tokenize,
    DetokenizeRequest: _detokenize,
}
"""Of which Structs some fields have rules of their own, and which."""
