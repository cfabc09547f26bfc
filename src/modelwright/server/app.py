"""`create_app`, the ASGI application: paths to endpoints; it is given a model and loads nothing."""

import difflib
from typing import Any

from starlette.routing import Route, Router

from modelwright.server.admission import Admission, most_requests
from modelwright.server.answering import Answering
from modelwright.server.live import LiveRequests
from modelwright.server.metrics import Metrics
from modelwright.server.pictures import PictureReader
from modelwright.server.prepare import Preparation
from modelwright.server.response_store import ResponseStore
from modelwright.server.routes.chat import Chat, ChatTokens
from modelwright.server.routes.completions import Completions
from modelwright.server.routes.endpoint import Endpoint, Parts
from modelwright.server.routes.models import Model, Models, OpenApi, Status, Version
from modelwright.server.routes.responses import CancelResponse, Responses, ResponseTokens, StoredResponse
from modelwright.server.routes.tokens import Detokenize, Tokenize
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

ENDPOINTS: tuple[tuple[str, str, type[Endpoint]], ...] = (
    ("POST", "/v1/chat/completions", Chat),
    ("POST", "/v1/chat/completions/input_tokens", ChatTokens),
    ("POST", "/v1/completions", Completions),
    ("GET", "/v1/models", Models),
    ("GET", "/v1/models/{model:path}", Model),
    ("POST", "/tokenize", Tokenize),
    ("POST", "/detokenize", Detokenize),
    ("GET", "/version", Version),
    ("GET", "/v1/status", Status),
    ("GET", "/openapi.json", OpenApi),
)
RESPONSES = "/v1/responses"
UNSUPPORTED = (
    "/v1/embeddings",
    "/v1/audio/{rest:path}",
    "/v1/moderations",
    "/v1/images/{rest:path}",
    "/v1/files",
    "/v1/files/{rest:path}",
    "/v1/batches",
    "/v1/batches/{rest:path}",
    "/v1/fine_tuning/{rest:path}",
    "/v1/assistants",
    "/v1/assistants/{rest:path}",
    "/v1/threads",
    "/v1/threads/{rest:path}",
    "/v1/vector_stores",
    "/v1/vector_stores/{rest:path}",
    "/v1/realtime",
    "/v1/realtime/{rest:path}",
    "/v1/messages",
    "/v1/messages/{rest:path}",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)
"""Paths of other people's APIs that have no place here, told apart from misspelt ones."""


def create_app(served: Served, settings: ServerSettings, metrics: Metrics) -> Router:
    """The application for one model; `guard` stands in front of it.

    It raises `ApiError` for what it refuses before a reply has begun, which the guard answers.
    """
    return app_of(make_parts(served, settings, metrics))


def app_of(parts: Parts) -> Router:
    """The paths of some parts."""
    methods = {"GET": ("GET", "HEAD"), "POST": ("POST",)}
    routes = [Route(path, _only(methods[method], kind(parts))) for method, path, kind in ENDPOINTS]
    routes += response_routes(parts)
    routes += [Route(path, _unsupported) for path in UNSUPPORTED]
    return Router(routes, redirect_slashes=False, default=_unknown)


def response_routes(parts: Parts) -> list[Route]:
    """The paths of responses, which share what is kept and what is being answered."""
    shared = ResponseStore(parts.settings.responses_store), {}
    root = RESPONSES
    return [
        Route(root, _only(("POST",), Responses(parts, *shared))),
        Route(f"{root}/input_tokens", _only(("POST",), ResponseTokens(parts, *shared))),
        Route(f"{root}/{{id}}/cancel", _only(("POST",), CancelResponse(parts, *shared))),
        Route(f"{root}/{{id}}", _only(("GET", "HEAD", "DELETE"), StoredResponse(parts, *shared))),
    ]


def make_parts(served: Served, settings: ServerSettings, metrics: Metrics) -> Parts:
    """What the endpoints are made of."""
    admission = Admission(served.engine, most_requests(settings, served.max_batch))
    pictures = PictureReader(settings, timed=metrics.picture_stage)
    preparation = Preparation(served, settings, pictures, metrics)
    answering = Answering(served.engine, admission, settings, metrics)
    return Parts(served, settings, preparation, admission, answering, LiveRequests(), metrics)


def _only(taken: tuple[str, ...], endpoint: Endpoint) -> Any:
    """An endpoint that takes some methods."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] not in taken:
            said = f"this path takes {' and '.join(taken)}, not {scope['method'][:20]}"
            raise ApiError(405, "method_not_allowed", said, headers={"allow": ", ".join(taken)})
        await endpoint(scope, receive, send)

    return _Application(app)


class _Application:
    """What Starlette takes for an ASGI application, not for a function of a request."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


async def _unsupported_app(scope: Any, receive: Any, send: Any) -> None:
    raise ApiError(
        501, "unsupported_endpoint", f"{scope['path'][:200]} is not served here; docs/server.md lists what is"
    )


_unsupported = _Application(_unsupported_app)


async def _unknown(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"][:200]
    meant = _meant(path)
    hint = f"; did you mean {meant}?" if meant else "; docs/server.md lists what is"
    raise ApiError(404, "unknown_url", f"there is no {path} here{hint}")


def _meant(path: str) -> str | None:
    """The path that somebody looks for who puts ``/v1`` twice, not at all or behind other words, or misspells it."""
    said = "".join(f"/{word}" for word in path.split("/") if word)
    known = sorted({path for _, path, _ in ENDPOINTS if "{" not in path} | {RESPONSES}, key=len, reverse=True)
    same = (each for each in known if said.endswith(each.removeprefix("/v1")))
    return next(same, None) or next(iter(difflib.get_close_matches(said, known, n=1, cutoff=0.85)), None)
