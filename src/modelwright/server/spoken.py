"""What was said in a request, for a log or a trace that is to hold it; of pictures only how they begin."""

from typing import Any

from modelwright.processing.data_urls import is_data_url

_SAID = ("messages", "prompt", "input", "instructions")
_LONGEST_URL = 64


def spoken(body: dict[str, Any]) -> dict[str, Any]:
    """The words of a request's body."""
    return {name: _without_pictures(body[name]) for name in _SAID if name in body}


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_pictures(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_pictures(each) for each in value]
    if isinstance(value, str) and is_data_url(value) and len(value) > _LONGEST_URL:
        return f"{value[:_LONGEST_URL]}... ({len(value)} characters)"
    return value
