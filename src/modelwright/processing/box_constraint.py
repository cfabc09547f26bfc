"""Constrained decoding for ``generate``: after ``<|det|>`` only what keeps to `box_grammar`, then ``<|/det|>``."""

from typing import cast

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from modelwright.processing.box_tokens import BoxTokens


class BoxConstraint(LogitsProcessor):
    """Give it to ``generate(logits_processor=[BoxConstraint(tokenizer)])``; rows outside ``<|det|>`` are untouched.

    It keeps no state between calls, so beams and batches may be reordered. A row whose text after ``<|det|>`` has left
    the grammar already (a prompt may hold such text) is left free.

    Raises:
        ConfigError: the tokenizer lacks the two tags, or a single token for a bracket, the comma or a digit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_boxes: int = 100):
        self.boxes = BoxTokens(tokenizer.get_vocab(), max_boxes)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids [B, T], scores [B, V] -> scores [B, V] with forbidden tokens at minus infinity."""
        constrained = scores
        for row, ids in enumerate(input_ids.tolist()):
            written = self._inside(ids)
            allowed = None if written is None else self.boxes.allowed(written)
            if allowed is None:
                continue
            if constrained is scores:
                constrained = cast(torch.FloatTensor, scores.clone())
            kept = torch.tensor(allowed, device=scores.device)
            constrained[row] = float("-inf")
            constrained[row, kept] = scores[row, kept]
        return constrained

    def _inside(self, ids: list[int]) -> list[int] | None:
        """What a row has written since its last ``<|det|>``; None where that is closed, or there was none."""
        for start in range(len(ids) - 1, -1, -1):
            if ids[start] == self.boxes.close_id:
                return None
            if ids[start] == self.boxes.open_id:
                return ids[start + 1 :]
        return None
