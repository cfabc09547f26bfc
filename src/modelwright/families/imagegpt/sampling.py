"""Completing pictures token by token: the loop that `generate()` runs, without what one family does not need.

Leaves out the model (``imagegpt.py``) and everything that `generate()` offers besides: beams, penalties, padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from modelwright.errors import RequestError
from modelwright.families.imagegpt.decode import feeder
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.imagegpt.parts import check_range
from modelwright.ops.limits import Limits, limit


def complete(
    model: ImageGPTForCausalImageModeling,
    input_ids: Tensor,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue each row of ``input_ids`` by ``new_tokens`` colours.

    Args:
        input_ids: ``[batch, tokens]``, without padding; the start token first, as pictures are trained.
        temperature: what scores are divided by; 0 takes the best colour each time.
        top_k: sample from the k best colours only; 0 means all.
        top_p: sample from the fewest best colours that together have this probability; 1 means all.
        generator: where the random numbers come from; torch's own by default.
        on_token: called after each token with how many are made.

    Returns:
        ``[batch, tokens + new_tokens]``, on the model's device.

    Raises:
        RequestError: an argument is out of its range, or the rows would outgrow ``n_positions``.
    """
    _check(model, input_ids, new_tokens, temperature, top_k, top_p)
    batch, given = input_ids.shape
    rows = torch.empty(batch, given + new_tokens, dtype=torch.long, device=model.device)
    rows[:, :given] = input_ids
    if new_tokens == 0:
        return rows
    with torch.inference_mode():
        limits = Limits.of([(top_k, top_p, 0.0)] * batch, model.device) if top_k > 0 or top_p < 1 else None
        feed = feeder(model, batch, slots=given + new_tokens - 1)
        new = rows[:, :given]
        for made in range(1, new_tokens + 1):
            new = choose(feed(new).float(), temperature, limits, generator)
            rows[:, given + made - 1] = new[:, 0]
            if on_token is not None:
                on_token(made)
    return rows


def choose(logits: Tensor, temperature: float, limits: Limits | None, generator: torch.Generator | None) -> Tensor:
    """``[batch, 1]``: a colour for each row of ``logits`` ``[batch, colours]`` in fp32, among those in ``limits``."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    kept = logits if limits is None else limit(logits, limits)
    return torch.multinomial(kept.softmax(dim=-1), 1, generator=generator)


def _check(
    model: ImageGPTForCausalImageModeling,
    input_ids: Tensor,
    new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    rules = {
        "the model must be in evaluation mode: call model.eval() first": not model.training,
        f"input_ids must be [batch, tokens] with at least one of each, got {list(input_ids.shape)}": input_ids.dim()
        == 2
        and input_ids.numel() > 0,
        f"new_tokens ({new_tokens}) must be at least 0": new_tokens >= 0,
        f"temperature ({temperature}) must be at least 0": temperature >= 0,
        f"top_k ({top_k}) must be at least 0": top_k >= 0,
        f"top_p ({top_p}) must be above 0 and at most 1": 0 < top_p <= 1,
    }
    for message, holds in rules.items():
        if not holds:
            raise RequestError(message)
    check_range("input_ids", input_ids, model.config.vocab_size, "vocab_size")
    fed, limit = input_ids.shape[1] + new_tokens - 1, model.config.n_positions
    if new_tokens > 0 and fed > limit:
        raise RequestError(
            f"{input_ids.shape[1]} given and {new_tokens} new tokens need {fed} positions (the last is never read); "
            f"n_positions is {limit}"
        )
