"""The input of ``modelwright generate``: lines that hold a JSON object each, read one at a time; no model is known."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.errors import RequestError

PROMPTS = ("prompt", "messages", "prompt_token_ids")
"""What a line asks with, one of them."""
_KEY_DIGITS = 16


@dataclass(frozen=True)
class Line:
    """One line that is not blank.

    Attributes:
        number: in the file, from 1.
        text: what stands there.
        key: a hash of the text and of everything else that the answer depends on.
    """

    number: int
    text: str
    key: str

    @property
    def id(self) -> Any:
        """The line's own ``id`` if it has one that can be written back, else its number."""
        try:
            fields = json.loads(self.text)
        except (ValueError, RecursionError):
            return self.number
        own = fields.get("id") if isinstance(fields, dict) else None
        return own if isinstance(own, str | int) else self.number

    def fields(self, known: Iterable[str]) -> dict[str, Any]:
        """The object, without ``id``.

        Raises:
            RequestError: the line is no JSON object in UTF-8, does not ask with exactly one of `PROMPTS`, or has a
                field that is neither one of these nor `known`.
        """
        fields = _object(self.text)
        known = [*PROMPTS, "id", *known]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise RequestError(f'unknown field "{name:.80}"' + (f'; did you mean "{near[0]}"?' if near else ""))
        asking = [name for name in PROMPTS if name in fields]
        if len(asking) != 1:
            raise RequestError(f"a line needs exactly one of {', '.join(PROMPTS)}, got {', '.join(asking) or 'none'}")
        if not isinstance(fields.pop("id", None), str | int | None):
            raise RequestError("an id must be a string or an integer")
        return fields


def read_lines(lines: Iterable[str], settings: Mapping[str, Any]) -> Iterator[Line]:
    """Each line that is not blank; `settings` are what answers depend on besides the line."""
    salt = json.dumps(settings, sort_keys=True)
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text:
            digest = sha256(f"{salt}\n{text}".encode("utf-8", "surrogateescape")).hexdigest()
            yield Line(number, text, digest[:_KEY_DIGITS])


def _object(text: str) -> dict[str, Any]:
    try:
        fields = parse_json(text.encode("utf-8", "surrogateescape"), "the line")
    except NotJson as error:
        raise RequestError(str(error)) from None
    if not isinstance(fields, dict):
        raise RequestError(f"the line must be a JSON object, got {text:.40}")
    return fields
