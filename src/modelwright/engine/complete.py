"""`complete`, rows of tokens continued together by so many, whatever they end with: what pictures are drawn by."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Update
from modelwright.errors import RequestError


def complete(
    model: Any,
    input_ids: Tensor,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue each row of ``input_ids`` by ``new_tokens`` tokens.

    Args:
        model: a causal model in evaluation mode, as the engine serves it.
        input_ids: ``[batch, tokens]``, without padding; pictures begin with the start token, as they are trained.
        temperature: what scores are divided by; 0 takes the best token each time.
        top_k: sample from the k best tokens only; 0 or -1 means all.
        top_p: sample from the fewest best tokens that together have this probability; 1 means all.
        seed: the same seed draws the same rows; None draws a seed.
        on_token: called with how many tokens every row has gained, each time that this number grows.

    Returns:
        ``[batch, tokens + new_tokens]``, on the device of ``input_ids``.

    Raises:
        RequestError: an argument is out of its range, or the rows would outgrow the model's context.
        ConfigError: the engine does not serve the model.
    """
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise RequestError(f"input_ids must be [batch, tokens] with at least one of each, got {list(input_ids.shape)}")
    if new_tokens < 0:
        raise RequestError(f"new_tokens ({new_tokens}) must be at least 0")
    if new_tokens == 0:
        return input_ids.clone()
    batch, given = input_ids.shape
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "ignore_eos": True}
    seeds = random.Random(seed)
    params = [SamplingParams(max_tokens=new_tokens, seed=seeds.getrandbits(63), **how) for _ in range(batch)]
    engine = Engine(model, EngineConfig(max_batch=batch, token_budget=input_ids.numel()))
    if given + new_tokens > engine.context:
        raise RequestError(
            f"{given} given and {new_tokens} new tokens are {given + new_tokens}; the model's context holds "
            f"{engine.context}"
        )
    results = engine.generate(input_ids.tolist(), params, None if on_token is None else _Progress(batch, on_token))
    drawn = torch.tensor([result.completions[0].tokens for result in results], device=input_ids.device)
    return torch.cat([input_ids, drawn], dim=1)


class _Progress:
    """Tells how many tokens every one of ``batch`` rows has gained."""

    def __init__(self, batch: int, on_token: Callable[[int], None]):
        self._on_token = on_token
        self._gained: dict[str, int] = {}
        self._batch, self._told = batch, 0

    def __call__(self, update: Update) -> None:
        self._gained[update.request] = self._gained.get(update.request, 0) + len(update.tokens)
        least = min(self._gained.values()) if len(self._gained) == self._batch else 0
        for gained in range(self._told + 1, least + 1):
            self._on_token(gained)
        self._told = max(self._told, least)
