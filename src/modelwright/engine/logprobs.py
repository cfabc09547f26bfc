"""Log-probabilities of tokens that were drawn or prompted, and of the best alternatives; no tensors come out.

They are the model's own: the log-softmax of its logits, before penalties, masks, temperature and limits, which is
vLLM's default too (``logprobs_mode="raw_logprobs"``). So they compare between requests with different settings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_AT_ONCE = 64  # float32 copies of a long prompt's logits would outgrow the model


@dataclass(frozen=True)
class TokenLogprobs:
    """What the model thought of one token.

    Attributes:
        token: its id.
        logprob: its natural logarithm of a probability.
        rank: 1 and how many tokens are better: 1 for the best.
        top: the best tokens as (id, logprob), best first.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[TokenLogprobs, ...]:
    """What logits ``[R, V]`` say of tokens ``[R]``, with the `count` best alternatives of each.

    For a prompt, the logits of each position belong to the token after it; the first token has none.
    """
    found: list[TokenLogprobs] = []
    for some, ids in zip(logits.split(_ROWS_AT_ONCE), tokens.split(_ROWS_AT_ONCE), strict=True):
        found += _of_rows(some.float(), ids.to(some.device), min(count, logits.shape[-1]))
    return tuple(found)


def _of_rows(logits: Tensor, tokens: Tensor, count: int) -> list[TokenLogprobs]:
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    best, ids = logprobs.topk(count, dim=-1)
    columns = tokens.tolist(), own[:, 0].tolist(), ranks.tolist(), ids.tolist(), best.tolist()
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(top_ids, top, strict=True)))
        for token, logprob, rank, top_ids, top in zip(*columns, strict=True)
    ]
