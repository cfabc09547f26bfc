"""What an answer took: tokens and times."""

import msgspec


class PromptDetails(msgspec.Struct):
    """Of the prompt's tokens: how many were found in the cache, how many stand for pictures.

    `cache_write_tokens` are those that cost more than others because they were kept: none do.
    """

    cached_tokens: int = 0
    picture_tokens: int = 0
    cache_write_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Of the tokens drawn: how many are of thoughts, which a reader parts from the text."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens, a prompt's counted once however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Timings(msgspec.Struct):
    """Where the time went, for `include_timings`."""

    queue_ms: float
    prompt_ms: float
    prompt_per_second: float
    predicted_ms: float
    predicted_per_second: float
