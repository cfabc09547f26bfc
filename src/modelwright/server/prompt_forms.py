"""The forms in which ``/v1/completions`` takes prompts: one text, several, the token ids of one, or of several."""

from typing import Any

from modelwright.server.wire.completions import MOST_PROMPTS
from modelwright.server.wire.errors import ApiError


def prompts_of(given: str | list[Any]) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids.

    Raises:
        ApiError: there is none, one that is neither, or too many.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise ApiError(400, "invalid_value", "prompt must not be an empty list", param="prompt")
    if all(_is_id(each) for each in given):
        return [list(given)]
    if len(given) > MOST_PROMPTS:
        message = f"prompt may hold at most {MOST_PROMPTS} prompts, got {len(given)}"
        raise ApiError(400, "invalid_value", message, param="prompt")
    for number, each in enumerate(given):
        ids = isinstance(each, list) and each and all(_is_id(one) for one in each)
        if not (isinstance(each, str) or ids):
            said = f"prompt[{number}] must be a text or a list of token ids"
            raise ApiError(400, "invalid_value", said, param=f"prompt[{number}]")
    return list(given)


def _is_id(value: Any) -> bool:
    """Whether it may be a token's id; whether the vocabulary has it is asked where the vocabulary is known."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
