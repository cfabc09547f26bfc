"""What a model makes of a text that it has not seen: its mean loss, over windows of the text's tokens."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.errors import RequestError
from modelwright.processing.marks import encode_text

WINDOW = 1024
"""Tokens read at once; fewer where a model reads fewer."""


@dataclass(frozen=True)
class HeldOut:
    """The mean loss, in nats, over ``tokens`` foreseen tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """``e`` to the loss."""
        return math.exp(min(self.loss, 700.0))


def read_texts(path: Path) -> list[str]:
    """The texts of a file: a ``.jsonl``'s ``text`` fields, each on its own, or all of any other file as one.

    Raises:
        RequestError: the file cannot be read as UTF-8, a line is no object with a ``text``, or nothing is in it.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--eval {path} cannot be read: {error}") from error
    if path.suffix != ".jsonl":
        texts = [content]
    else:
        lines = enumerate(content.splitlines(), start=1)
        texts = [_text_of(line, f"{path}:{number}") for number, line in lines if line.strip()]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise RequestError(f"--eval {path} holds no text")
    return texts


def _text_of(line: str, where: str) -> str:
    try:
        row = parse_json(line.encode())
    except NotJson as error:
        raise RequestError(f"--eval {where} must be a JSON object with a text: {error}") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise RequestError(f"--eval {where} must be a JSON object with a text, got {line:.80}")
    return text


@torch.inference_mode()
def held_out_loss(model: Any, tokenizer: Any, texts: list[str]) -> HeldOut:
    """The mean loss of every token of ``texts`` but the first of each, each foreseen once.

    Windows follow one another and overlap by one token, which is the first's last and the next one's context.

    Raises:
        RequestError: no text has two tokens.
    """
    config = model.config.get_text_config()
    window = min(WINDOW, config.max_position_embeddings)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([encode_text(tokenizer, text)], device=model.device)
        for start in range(0, ids.shape[1] - 1, window - 1):
            piece = ids[:, start : start + window]
            logits = model(input_ids=piece, attention_mask=torch.ones_like(piece), use_cache=False).logits
            total += float(F.cross_entropy(logits[0, :-1].float(), piece[0, 1:], reduction="sum"))
            count += piece.shape[1] - 1
    if not count:
        raise RequestError("--eval needs a text of at least 2 tokens")
    return HeldOut(total / count, count)
