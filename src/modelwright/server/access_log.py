"""One line per request on stderr, JSON or text, in which nothing that a client wrote can make another line."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelwright.server.settings import ServerSettings

_LONGEST = 256
"""Characters of a text that a client chose: a path, a model's name."""


@dataclass
class Record:
    """What is known of a request; `guard` begins and ends it, and the routes fill in what they learn.

    Attributes:
        time: when it came, seconds since 1970.
        route: the path without its query.
        code: of the error, where it ended in one.
        aborted: where it was when its client left or was cut off: queue, picture, prefill, decode, slow_reader.
        content: what was asked and answered, which is told with ``--log-content`` alone.
        stages: begin and end of what the request passed through, in milliseconds after it came: pictures, prepare,
            queue, prefill, decode. They are for traces, and no line tells them.
    """

    request_id: str
    client: str | None
    method: str
    route: str
    time: float = field(default_factory=time.time)
    key: str = ""
    model: str | None = None
    status: int = 0
    code: str | None = None
    stream: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    picture_tokens: int | None = None
    completion_tokens: int | None = None
    pictures: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    finish_reason: str | None = None
    aborted: str | None = None
    content: dict[str, Any] | None = None
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)


class AccessLog:
    """Writes records.

    Args:
        write: gets each line, without its end.
    """

    def __init__(self, settings: ServerSettings, write: Callable[[str], None] | None = None):
        self._json, self._content = settings.log_format == "json", settings.log_content
        self._write = write or _to_stderr

    def add(self, record: Record) -> None:
        """Write the line of a request that has ended."""
        values = {name: value for name, value in asdict(record).items() if value is not None}
        for untold in ("stages",) if self._content else ("stages", "content"):
            values.pop(untold, None)
        values["time"] = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds")
        for name in ("route", "model", "client", "method"):
            if isinstance(values.get(name), str):
                values[name] = values[name][:_LONGEST]
        self._write(json.dumps(values) if self._json else _as_text(values))


def _as_text(values: dict[str, Any]) -> str:
    """Time, client, request and status in front, the rest as name=value; JSON's escapes keep all of it on one line."""
    taken = ("time", "client", "method", "route", "status")
    shown = [str(values.get(name, "-")) for name in taken]
    rest = [
        f"{name}={_word(value)}" for name, value in values.items() if name not in taken and value not in ("", False)
    ]
    return " ".join([*(_word(word) for word in shown), *rest])


def _word(value: Any) -> str:
    text = json.dumps(value)
    plain = isinstance(value, str) and text[1:-1] == value and not set(value) & set(" =\x7f")
    return value if plain and value else text


def _to_stderr(line: str) -> None:
    with suppress(OSError, ValueError):  # a full or closed stderr stops no answer
        sys.stderr.write(line.replace("\x7f", "\\u007f") + "\n")
        sys.stderr.flush()
