"""The draw from what temperature, top-k, top-p and min-p leave; penalties and masks come before.

`ops/limits.py` is the definition, which sorts the whole vocabulary. `draw` gives the same tokens from the few best
candidates of a row, wherever these settle which tokens are left.
"""

import torch
from torch import Tensor

from modelwright.engine.noise import gumbel
from modelwright.ops.limits import Limits, limit

WINDOWS = (256, 4096)
"""How many candidates are looked at before a row is sorted as a whole."""
_MARGIN = 1e-5
"""A probability so near its threshold is decided by `limit`; float32 sums differ by less than this."""


def draw_any(scores: Tensor, streams: Tensor) -> Tensor:
    """Draw from the softmax of scores ``[R, V]`` with the noise of streams ``[R]`` -> token ids ``[R]``."""
    every_id = torch.arange(scores.shape[-1], device=scores.device)
    return (gumbel(streams, every_id) + scores).argmax(-1)


def draw(scores: Tensor, limits: Limits, streams: Tensor, windows: tuple[int, ...] = WINDOWS) -> Tensor:
    """Draw from what `limits` leaves of scores ``[R, V]`` with the noise of streams ``[R]`` -> token ids ``[R]``."""
    tokens = torch.zeros_like(streams)
    left = torch.arange(len(streams), device=scores.device)  # rows that are not drawn yet
    for window in windows:
        if window >= scores.shape[-1] or len(left) == 0:
            break
        part = scores if len(left) == len(scores) else scores[left]
        values, ids = _best(part, window)
        kept, settled = _kept_of_window(values, part, limits.rows(left))
        noisy = gumbel(streams[left], ids).add_(values).masked_fill_(~kept, -torch.inf)
        drawn = ids.gather(1, noisy.argmax(-1, keepdim=True))[:, 0]
        tokens[left[settled]] = drawn[settled]
        left = left[~settled]
    if len(left):
        tokens[left] = draw_any(limit(scores[left], limits.rows(left)), streams[left])
    return tokens


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each row and their ids, ``[R, count]``, best first and of equals the higher id first."""
    values, ids = scores.topk(count, dim=-1, sorted=False)
    ids, order = ids.sort(dim=-1, descending=True)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _kept_of_window(values: Tensor, scores: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """Which candidates stay ``[R, C]``, and for which rows this is certain to be all that `limit` keeps ``[R]``.

    values ``[R, C]`` are the best of scores ``[R, V]`` in falling order.
    """
    last, best = values[:, -1:], values[:, :1]
    has_k, has_p, has_m = (limits.top_k > 0)[:, None], (limits.top_p < 1)[:, None], (limits.min_p > 0)[:, None]
    in_window = has_k & (limits.top_k <= values.shape[-1])[:, None]
    kth = values.gather(1, (limits.top_k.clamp(1, values.shape[-1]) - 1)[:, None])
    kept = (values >= kth) | ~has_k
    whole = torch.where(has_k, values.masked_fill(~kept, -torch.inf).logsumexp(-1, True), scores.logsumexp(-1, True))
    probabilities = (values - whole).exp() * kept
    before = probabilities.double().cumsum(-1) - probabilities  # the mass of all better candidates
    top_p = limits.top_p.double()[:, None]
    doubtful = kept & has_p & ((before - top_p).abs() < _MARGIN)
    kept = kept & ((before < top_p) | ~has_p)
    ratio, min_p = (values - best).exp(), limits.min_p[:, None]
    doubtful |= kept & has_m & (values < best) & ((ratio - min_p).abs() < _MARGIN * min_p)
    kept = kept & ((ratio >= min_p) | ~has_m)
    doubtful[:, 0], kept[:, 0] = False, True  # the best stays in any case
    lowest = values.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    complete = (last == -torch.inf) | ((last < lowest) & (~has_k | (in_window & (last < kth))))
    return kept, complete[:, 0] & ~doubtful.any(-1)
