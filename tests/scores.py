"""Scores and what limits them, drawn for the tests of sampling."""

import torch
from hypothesis import strategies as st

LIMITS = st.tuples(st.sampled_from([0, 1, 3, 8, 40]), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.floats(0, 1))
"""A row's top_k, top_p and min_p."""


def random_scores(seed: int, rows: int, vocabulary: int, rounded: bool) -> torch.Tensor:
    scores = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return scores.bfloat16().float() if rounded else scores  # bf16 logits are full of equals
