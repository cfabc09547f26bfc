"""``GET /openapi.json``: the paths, what they take and give, and every status that they answer with."""

from collections.abc import Mapping
from typing import Any

import msgspec

from modelwright.server.field_schemas import Bounds, exact
from modelwright.server.served import VERSION
from modelwright.server.wire.chat import ChatReply, ChatRequest
from modelwright.server.wire.completions import CompletionReply, CompletionRequest
from modelwright.server.wire.errors import ErrorBody
from modelwright.server.wire.responses import ResponsesRequest
from modelwright.server.wire.tokens import DetokenizeRequest, TokenizeReply, TokenizeRequest

_REQUESTS: Mapping[str, type] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/input_tokens": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_REPLIES: Mapping[str, type] = {
    "/v1/chat/completions": ChatReply,
    "/v1/completions": CompletionReply,
    "/tokenize": TokenizeReply,
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_READ = ("/v1/models", "/v1/models/{model}", "/version", "/v1/status", "/openapi.json", "/metrics")
_PROBES = ("/health", "/livez", "/readyz")
_STATUSES = {
    400: "The request breaks a rule; the error names it.",
    401: "No key, or a wrong one.",
    403: "The key, the host or the page is not allowed to do this.",
    404: "There is no such model, response or path.",
    405: "The path takes another method.",
    408: "The body was not here in time.",
    413: "The body is too large.",
    415: "The body is no plain JSON.",
    429: "Too many requests; retry-after says when to come again.",
    431: "The headers are too large.",
    500: "The server failed on this request alone.",
    501: "This is not served here.",
    503: "The server is loading, shutting down or stalled.",
}


def openapi(bounds: Bounds) -> dict[str, Any]:
    """The description of a server, by OpenAPI 3.1."""
    kinds = [*dict.fromkeys([*_REQUESTS.values(), *_REPLIES.values(), ErrorBody])]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {path: {"post": _post(path, of)} for path in _REQUESTS}
    paths |= {path: {"get": _get(path, of)} for path in (*_READ, *_PROBES)}
    one, cancel = "/v1/responses/{id}", "/v1/responses/{id}/cancel"
    paths[one] = {"get": _get(one, of), "delete": _get(one, of)}
    paths[cancel] = {"post": _get(cancel, of)}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "modelwright", "version": VERSION},
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "schemas": exact(components, bounds),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    root_path = bounds.settings.root_path
    return described | ({"servers": [{"url": root_path}]} if root_path else {})


def _post(path: str, of: Mapping[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {"schema": of[_REPLIES[path]] if path in _REPLIES else {"type": "object"}}
    }
    if path in _STREAMS:
        content["text/event-stream"] = {}
    return {
        "operationId": _name("post", path),
        "requestBody": {"required": True, "content": {"application/json": {"schema": of[_REQUESTS[path]]}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **_errors(of)},
    }


def _get(path: str, of: Mapping[type, Any]) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    kind = "text/plain" if path == "/metrics" else "application/json"
    schema = {"type": "string"} if path == "/metrics" else {"type": "object"}
    found: dict[str, Any] = {
        "operationId": _name("get", path),
        "responses": {"200": {"description": "What was asked.", "content": {kind: {"schema": schema}}}, **_errors(of)},
    }
    if path in _PROBES:
        found["security"] = []
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return found


def _errors(of: Mapping[type, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": of[ErrorBody]}}
    return {str(status): {"description": said, "content": content} for status, said in _STATUSES.items()}


def _name(method: str, path: str) -> str:
    return method + "_" + "_".join(part.strip("{}") for part in path.split("/") if part).replace(".", "_")
