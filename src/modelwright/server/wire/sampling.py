"""The fields by which a request says how it is continued."""

from typing import Annotated

import msgspec
from msgspec import Meta

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
MOST_STOPS, LONGEST_STOP, MOST_BIASES = 16, 256, 1024
Stop = Annotated[str, Meta(min_length=1, max_length=LONGEST_STOP)]


class StreamOptions(msgspec.Struct):
    """What a stream tells besides the answer."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_progress: bool | None = False


class DrawingFields(msgspec.Struct, kw_only=True):
    """What chat, completions and responses say alike; null is the default, as if a field were left out."""

    model: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=MOST_BIASES)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MOST_STOPS)] | None = None
    top_k: int | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-8, le=8)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    timeout: Annotated[float, Meta(gt=0)] | None = None
    structured_outputs: dict | None = None
    stream: bool | None = None


class SamplingFields(DrawingFields, kw_only=True):
    """What chat and completions say alike: OpenAI's names where OpenAI has them, vLLM's for the rest."""

    n: Annotated[int, Meta(ge=1)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0)] | None = None
    include_timings: bool | None = None
    response_format: dict | None = None
    stream_options: StreamOptions | None = None
