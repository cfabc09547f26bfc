"""Heads one channel wide, as many as channels: transformers' logits, and the engine's tokens."""

import torch

from tests.engine.engines import engine_of, expected, greedy
from tests.imagegpts import pair


def test_heads_of_one_channel():
    ours, theirs = pair(n_head=24)
    ids = torch.randint(0, 16, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)
    (result,) = engine_of(ours).generate([ids[0].tolist()], greedy(5))
    assert result.completions[0].tokens == expected(ours, ids, 5).tokens
