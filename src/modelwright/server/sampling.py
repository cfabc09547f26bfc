"""From the fields of a request to `SamplingParams`; what it leaves out is the model's default, then OpenAI's."""

from collections.abc import Mapping
from typing import Any

from modelwright.configs.limits import LARGEST_SEED
from modelwright.engine.params import Guide, SamplingParams
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.sampling import SamplingFields

_SAME = [
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "presence_penalty",
    "frequency_penalty",
    "temperature",
    "top_p",
    "n",
]
"""Fields of the same name and meaning."""


def sampling_params(
    fields: SamplingFields,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int,
    logprobs: int | None,
    guide: Guide | None,
    prompt_logprobs: int | None,
    max_n: int,
    max_logprobs: int,
) -> SamplingParams:
    """How a request is continued.

    Args:
        defaults: of the model, by the names of `SamplingParams`.
        max_n: how many answers a request may ask for.
        max_logprobs: how many alternatives a place of the prompt may have.

    Raises:
        ApiError: a value that is out of its range.
    """
    if (fields.n or 1) > max_n:
        raise ApiError(400, "invalid_value", f"n must be at most {max_n} here, got {fields.n}", param="n")
    if prompt_logprobs is not None and prompt_logprobs > max_logprobs:
        said = f"prompt_logprobs must be at most {max_logprobs} here, got {prompt_logprobs}"
        raise ApiError(400, "invalid_value", said, param="prompt_logprobs")
    values: dict[str, Any] = {name: value for name in _SAME if (value := getattr(fields, name)) is not None}
    if fields.seed is not None:
        values["seed"] = fields.seed % (LARGEST_SEED + 1)
    if fields.stop is not None:
        values["stop"] = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
    if fields.logit_bias:
        values["logit_bias"] = {_token_id(key): value for key, value in fields.logit_bias.items()}
    if fields.skip_special_tokens is not None:
        values["skip_special_tokens"] = fields.skip_special_tokens
    values |= {"max_tokens": max_tokens, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs, "guide": guide}
    for name in ("stop_token_ids", "bad_words"):
        if name in values:
            values[name] = tuple(values[name])
    merged: dict[str, Any] = {"temperature": 1.0, **defaults, **values}
    try:
        return SamplingParams(**merged)
    except ValueError as error:
        raise ApiError.of(error) from error


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 12):
        said = f"logit_bias must name tokens by their ids, got {key[:40]!r}"
        raise ApiError(400, "invalid_value", said, param="logit_bias")
    return int(key)
