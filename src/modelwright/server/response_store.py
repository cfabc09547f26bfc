"""Responses that are kept for those who asked, by number and bytes; those that nobody used longest go first."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from modelwright.server.wire.errors import ApiError

MOST_RESPONSES = 10_000
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Kept:
    """A response, and the messages of its conversation with the answer at their end."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int


class ResponseStore:
    """Of each key its own.

    Args:
        most: how many are kept; 0 keeps none.
    """

    def __init__(self, most: int, most_bytes: int = MOST_BYTES):
        self.most, self._most_bytes = min(most, MOST_RESPONSES), most_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._bytes = 0

    def put(self, key: str, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Keep a response."""
        size = len(msgspec.json.encode([response, messages]))
        self._kept[key, response["id"]] = Kept(response, messages, size)
        self._bytes += size
        while len(self._kept) > self.most or self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def get(self, key: str, id_: str, param: str | None = None) -> Kept:
        """A response that this key asked for.

        Raises:
            ApiError: none is kept under that id.
        """
        kept = self._kept.get((key, id_))
        if kept is None:
            raise missing(id_, self.most, param)
        self._kept.move_to_end((key, id_))
        return kept

    def drop(self, key: str, id_: str) -> None:
        """Keep a response no longer.

        Raises:
            ApiError: none is kept under that id.
        """
        self._bytes -= self.get(key, id_).size
        del self._kept[key, id_]


def missing(id_: str, most: int, param: str | None = None) -> ApiError:
    """The error for a response that is not kept."""
    why = "" if most else "; the server keeps responses where it is started with --responses-store N"
    return ApiError(404, "response_not_found", f"there is no response {id_[:80]!r}{why}", param=param)
