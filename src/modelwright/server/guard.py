"""`Guard`, what stands in front of every route: who asks, by which name, from which page, and whether it can be served.

It answers probes and metrics itself, and says 503 as long as there is no application behind it.
"""

import logging
import re
import time
import uuid
from collections import Counter
from typing import Any

from modelwright.server.access_log import AccessLog, Record
from modelwright.server.auth import Keys, check_scope
from modelwright.server.health import PATHS, Health
from modelwright.server.metrics import Metrics
from modelwright.server.origins import Headers, Origins
from modelwright.server.refusal import refuse
from modelwright.server.settings import ServerSettings
from modelwright.server.traces import Traces
from modelwright.server.wire.errors import ApiError

METRICS = "/metrics"
SCOPES = {METRICS: "metrics"}
"""The scope that a key needs for a path; every other path needs `infer`."""
_CLOSE = (b"connection", b"close")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Guard:
    """An ASGI application around another.

    What is inside finds in ``scope["state"]``: ``key`` (an `auth.Key`), ``request_id``, and ``record`` (an
    `access_log.Record` to fill in).

    Args:
        keys, health, metrics, log, traces: shared with the rest of the server.

    Attributes:
        app: what is guarded; None until there is a model.
        running: requests in flight, probes not among them.
    """

    def __init__(
        self,
        settings: ServerSettings,
        keys: Keys,
        health: Health,
        metrics: Metrics,
        log: AccessLog,
        traces: Traces | None = None,
    ):
        self.app: Any = None
        self.running = 0
        self._settings, self._keys, self._health, self._metrics, self._log = settings, keys, health, metrics, log
        self._origins, self._traces = Origins(settings), traces
        self._of_key: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # no WebSockets are spoken; a lifespan is `run`'s business
            return
        start = time.perf_counter()
        headers = scope["headers"]
        path = route_of(scope)
        id_ = _request_id(headers)
        client = scope.get("client")
        record = Record(id_, client[0] if client else None, scope["method"], path)
        scope["state"] = {**scope.get("state", {}), "request_id": id_, "record": record}
        own = [(b"x-request-id", id_.encode()), (b"x-content-type-options", b"nosniff")]
        own += self._origins.response(headers)

        def answer(message: Any) -> Any:  # what is to be awaited, without a step of its own for each frame
            if message["type"] == "http.response.start":
                record.status = message["status"]
                took = (b"openai-processing-ms", str(round((time.perf_counter() - start) * 1000)).encode())
                ends = [_CLOSE] if scope["state"].get("unread", _never)() else []  # see `Connection`
                message = {**message, "headers": [*message.get("headers", ()), *own, took, *ends]}
            return send(message)

        try:
            await self._take(scope, receive, answer, path, record)
        except ApiError as error:
            await self._refuse(scope, answer, record, error)
        except Exception as error:
            _log.exception("request %s failed", id_)
            await self._refuse(scope, answer, record, ApiError.of(error))
        finally:
            record.total_ms = round((time.perf_counter() - start) * 1000, 3)
            if path not in PATHS:
                self._log.add(record)
                self._trace(record, headers)

    async def _take(self, scope: Any, receive: Any, send: Any, path: str, record: Record) -> None:
        """Ask all that is to be asked, the cheapest first, and hand the request on."""
        headers, method = scope["headers"], scope["method"]
        self._origins.check_host(headers, scope["http_version"])
        self._origins.check_origin(headers, method)
        if self._origins.is_preflight(headers, method):
            await _send(send, 204, b"", self._origins.preflight(headers))
            return
        if path in PATHS:
            _only_read(method)
            status, body = self._health.probe(path)
            await _send(send, status, b"" if method == "HEAD" else body, _json(body))
            return
        key = self._keys.find(headers)
        record.key = key.name
        check_scope(key, SCOPES.get(path, "infer"))
        apart = self._settings.metrics_port is not None
        here = scope["state"].get("metrics_only", False)
        if path == METRICS and apart == here:
            _only_read(method)
            body, kind = self._metrics.page()
            await _send(send, 200, b"" if method == "HEAD" else body, _typed(kind, body))
            return
        if here:
            raise ApiError(404, "unknown_url", "here are /metrics and probes alone")
        self._health.require()
        if self.app is None:
            raise ApiError(503, "loading", "the model is being loaded", headers={"retry-after": "5"})
        scope["state"]["key"] = key
        if method == "POST" and key.max_concurrent is not None and self._of_key[key.name] >= key.max_concurrent:
            raise ApiError(
                429,
                "key_concurrency",
                f"requests with this key at once must be at most {key.max_concurrent}",
                headers={"retry-after": "1", "retry-after-ms": "1000"},
            )
        self.running += 1
        self._of_key[key.name] += method == "POST"
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1
            self._of_key[key.name] -= method == "POST"

    def _trace(self, record: Record, headers: Headers) -> None:
        """Tell of a request that has ended; what is wrong with telling is no fault of its own."""
        try:
            if self._traces is not None:
                self._traces.add(record, headers)
        except Exception:
            _log.exception("request %s was not traced", record.request_id)

    async def _refuse(self, scope: Any, send: Any, record: Record, error: ApiError) -> None:
        record.code = error.code
        self._metrics.refused(error.code)
        if not record.status:  # otherwise an answer was begun, and uvicorn cuts it off
            await refuse(scope, send, error)


def _never() -> bool:
    return False


def route_of(scope: Any) -> str:
    """The path that routes are found by: without what a proxy took off, as it was set by ``--root-path``."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _request_id(headers: Any) -> str:
    """The client's own id, where it is a harmless one, or a new one."""
    named = [value for name, value in headers if name == b"x-request-id"]
    if len(named) == 1 and _ID.fullmatch(named[0]):
        return named[0].decode("ascii")
    return f"req_{uuid.uuid4().hex}"


def _only_read(method: str) -> None:
    if method not in ("GET", "HEAD"):
        raise ApiError(
            405, "method_not_allowed", f"this path takes GET, not {method:.20}", headers={"allow": "GET, HEAD"}
        )


def _json(body: bytes) -> list[tuple[bytes, bytes]]:
    return _typed("application/json", body)


def _typed(kind: str, body: bytes) -> list[tuple[bytes, bytes]]:
    length = str(len(body)).encode()
    return [(b"content-type", kind.encode()), (b"content-length", length), (b"cache-control", b"no-store")]


async def _send(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
