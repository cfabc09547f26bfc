"""What an answer took, as lines for people and as the object of ``--json``."""

from dataclasses import dataclass
from typing import Any

import torch

from modelwright.cli.memory import peak_memory
from modelwright.processing import Grounding
from modelwright.processing.batching import ProcessedPrompt
from modelwright.serving.answer import Answer


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer."""

    prompt: ProcessedPrompt
    answer: Answer
    load_seconds: float


def as_object(usage: Usage, groundings: list[Grounding]) -> dict[str, Any]:
    """The object of ``--json``; boxes are x1, y1, x2, y2 in pixels of the picture, seconds are wall clock."""
    answer = usage.answer
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason.value,
        "groundings": [
            {"label": found.label, "boxes": [[round(value, 2) for value in box] for box in found.boxes]}
            for found in groundings
        ],
        "usage": {
            "prompt_tokens": len(usage.prompt),
            "image_tokens": usage.prompt.picture_tokens,
            "completion_tokens": answer.tokens,
        },
        "timings": {
            "load_seconds": round(usage.load_seconds, 4),
            "first_token_seconds": _rounded(answer.first_token_seconds),
            "total_seconds": round(answer.seconds, 4),
            "tokens_per_second": _rounded(answer.tokens_per_second),
        },
    }


def as_lines(usage: Usage, device: torch.device) -> str:
    """The lines of ``--stats``."""
    prompt, answer = usage.prompt, usage.answer
    first = "-" if answer.first_token_seconds is None else f"{answer.first_token_seconds:.3f} s"
    rate = "-" if answer.tokens_per_second is None else f"{answer.tokens_per_second:.1f} tokens/s"
    return "\n".join(
        (
            f"prompt       {len(prompt)} tokens, {prompt.picture_tokens} of them of pictures, "
            f"{answer.reused} found in the cache",
            f"answer       {answer.tokens} tokens in {answer.seconds:.3f} s",
            f"first token  after {first}, then {rate}",
            f"peak memory  {peak_memory(str(device))}",
        )
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
