"""`ApiError`, a refusal in OpenAI's form: its status, its type, its code, and one sentence."""

from collections.abc import Mapping

import msgspec

from modelwright.errors import GuideError, RequestError, RequestFailed

LONGEST = 1000
"""Characters of a message at most."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


class ErrorObject(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct):
    """The body of every answer that is no 2xx."""

    error: ErrorObject


class ApiError(Exception):
    """Ends a request with an error.

    Args:
        status: of HTTP; it decides the error's type.
        code: one of those in docs/server.md.
        message: one sentence with the rule and the value, without paths, addresses or keys.
        param: the field it is about, such as ``messages[0].content``.
        headers: further ones of the answer, such as ``retry-after``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        message = message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: Exception, param: str | None = None) -> "ApiError":
        """What the client is told of an error: refusals keep their sentence, faults of ours do not.

        Args:
            param: the field it is about where the error names none itself.
        """
        if isinstance(error, ApiError):
            return error
        if isinstance(error, RequestFailed):
            return cls(500, "model_failed", str(error))
        if isinstance(error, GuideError):
            code = "schema_too_complex" if error.too_complex else "invalid_schema"
            return cls(400, code, str(error), param=param or error.field)
        if isinstance(error, RequestError):
            return cls(400, "invalid_value", str(error), param=error.field or param)
        return cls(500, "internal_error", "the server failed on this request; its log has the reason")

    @property
    def object(self) -> ErrorObject:
        return ErrorObject(self.message, _TYPES.get(self.status, "invalid_request_error"), self.param, self.code)

    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(self.object))
