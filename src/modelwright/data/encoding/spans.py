"""Text of which some stretches are learned, as tokens; nothing here knows messages or templates."""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

Span = tuple[int, int]
"""From which character to before which."""


def encode_spans(text: str, spans: Sequence[Span], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of ``text`` without marks around it, int64 [n], and which are learned, bool [n].

    Where a learned stretch begins, the prompt ends that the model will be given, so the tokens end there too: no token
    reaches over the border. Where pieces that are encoded alone would read otherwise (some tokenizers put a space
    before each), the text is encoded as a whole, and a token that reaches into a learned stretch is learned.

    Args:
        spans: the learned stretches, in order, not overlapping.
    """
    bounds = sorted({0, len(text), *chain.from_iterable(spans)})
    pieces = [tokenizer.encode(text[start:stop], add_special_tokens=False) for start, stop in pairwise(bounds)]
    inside = [any(a <= start and stop <= b for a, b in spans) for start, stop in pairwise(bounds)]
    apart = list(chain.from_iterable(pieces))
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    together = whole["input_ids"]
    if apart == together or _reads(apart, tokenizer) == _reads(together, tokenizer):
        learned = np.repeat(np.array(inside, bool), [len(piece) for piece in pieces])
        return np.array(apart, np.int64), learned
    learned = [any(stop > a and (stop <= b or start < b) for a, b in spans) for start, stop in whole["offset_mapping"]]
    return np.array(together, np.int64), np.array(learned, bool)


def _reads(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
