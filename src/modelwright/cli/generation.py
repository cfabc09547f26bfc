"""One answer: checked against the context, generated token by token, timed; printing is left to the caller."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from modelwright.checkpoints import Loaded
from modelwright.cli.conversation import Prompt
from modelwright.cli.options import Sampling
from modelwright.cli.streaming import TextStream
from modelwright.errors import RequestError


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it took.

    Attributes:
        text: without end-of-sentence and padding tokens; grounding tokens are kept.
        tokens: new tokens, the end of sentence among them.
        first_token_seconds: from the start to the first token; None when there was none.
        seconds: from the start to the end.
        tokens_per_second: after the first token; None with fewer than two.
        interrupted: Ctrl-C ended it early.
    """

    text: str
    tokens: int
    first_token_seconds: float | None
    seconds: float
    tokens_per_second: float | None
    interrupted: bool = False


def answer(
    loaded: Loaded, prompt: Prompt, sampling: Sampling, chunk_size: int | None, emit: Callable[[str], None]
) -> Answer:
    """Generate the continuation of ``prompt``; ``emit`` gets the text piece by piece. Ctrl-C ends the answer.

    Raises:
        RequestError: the prompt leaves no room for an answer in the model's context.
    """
    model = loaded.model
    room = _room_for_answer(model, prompt)
    ends = _end_tokens(loaded)
    stream = TextStream(loaded.tokenizer, ends | _marks(loaded.tokenizer), emit)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    how = _choice_of_tokens(sampling, room, ends)
    interrupted = False
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            model.generate(**_prefilled(model, prompt, chunk_size), **how, streamer=stream)
    except KeyboardInterrupt:
        interrupted = True
    stream.end()
    seconds = time.perf_counter() - start
    first = None if stream.first is None else stream.first - start
    return Answer(stream.text.rstrip(), stream.tokens, first, seconds, _rate(stream), interrupted)


def _room_for_answer(model: Any, prompt: Prompt) -> int:
    context = model.config.get_text_config().max_position_embeddings
    if prompt.tokens >= context:
        raise RequestError(
            f"the prompt is {prompt.tokens} tokens long and the model's context holds {context} "
            f"(max_position_embeddings), which leaves no room for an answer"
        )
    return context - prompt.tokens


def _choice_of_tokens(sampling: Sampling, room: int, ends: set[int]) -> dict[str, Any]:
    """What the options decide; all of it is said, so that none of the checkpoint's own habits stands in its place."""
    how: dict[str, Any] = {
        "max_new_tokens": min(sampling.max_new_tokens, room),
        "repetition_penalty": sampling.repetition_penalty,
        "do_sample": sampling.heat > 0,
        "num_beams": 1,
        "eos_token_id": sorted(ends) or None,
        "pad_token_id": min(ends, default=0),  # there is one row, so nothing is ever padded
    }
    if sampling.heat == 0:
        return how | {"temperature": None, "top_p": None, "top_k": None}
    return how | {"temperature": sampling.heat, "top_p": sampling.top_p or 1.0, "top_k": sampling.top_k or 0}


def _prefilled(model: Any, prompt: Prompt, chunk_size: int | None) -> dict[str, Any]:
    """The arguments of ``generate``; with ``chunk_size`` the prompt is read in chunks, here or there."""
    if chunk_size is None:
        return prompt.inputs
    if not hasattr(type(model), "incremental_prefilling"):
        return prompt.inputs | {"prefill_chunk_size": chunk_size}
    embeds, cache = model.incremental_prefilling(**prompt.inputs, chunk_size=chunk_size)
    kept = {name: prompt.inputs[name] for name in ("input_ids", "attention_mask")}
    return kept | {"inputs_embeds": embeds, "past_key_values": cache}


def _end_tokens(loaded: Loaded) -> set[int]:
    """The tokenizer's end of sentence; the config's, which files may leave at a default, only where it has none."""
    ends = loaded.tokenizer.eos_token_id
    ends = loaded.model.generation_config.eos_token_id if ends is None else ends
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def _marks(tokenizer: Any) -> set[int]:
    """Tokens that are no part of an answer's text."""
    return {tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}


def _rate(stream: TextStream) -> float | None:
    if stream.first is None or stream.last is None or stream.last <= stream.first:
        return None
    return (stream.tokens - 1) / (stream.last - stream.first)
