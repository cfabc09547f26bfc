"""Prompts and prefixes that peft learnt, beside ways to generate that it does not prepare inputs for."""

from typing import Any

from torch import nn
from transformers import Cache, DynamicCache

from modelwright.errors import RequestError


def learnt_prompt(model: nn.Module) -> Any:
    """peft's config of the prompt or prefix that ``model`` generates with; None where there is none.

    While peft generates, it prepares the inputs in the model's place: its method stands on the model then.
    """
    adapted = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    config = getattr(adapted, "active_peft_config", None)
    return config if getattr(config, "is_prompt_learning", False) else None


def refuse_other_caches(model: nn.Module, cache: Cache | None) -> None:
    """Raise a RequestError where ``model`` has a learnt prompt and generates with a cache that peft cannot put it in.

    A static cache is made without room for the prompt. Without any, peft takes the one that holds its prefix for a
    past of all tokens.
    """
    config = learnt_prompt(model)
    if config is None:
        return
    if cache is not None and not isinstance(cache, DynamicCache):
        raise RequestError(
            f"{_named(config)} of peft needs a cache that grows, got a {type(cache).__name__}: give none, and no "
            "cache_implementation"
        )
    if cache is None and config.peft_type.value in _KEPT_IN_CACHES:
        raise RequestError(f"{_named(config)} of peft keeps what it learnt in a cache: use_cache must be True")


def refuse_drafts(model: nn.Module) -> None:
    """Raise a RequestError where ``model`` has a learnt prompt: of drafted tokens peft hands on the last alone."""
    config = learnt_prompt(model)
    if config is not None:
        raise RequestError(
            f"{_named(config)} of peft generates token by token: leave prompt_lookup_num_tokens, assistant_model and "
            "assistant_early_exit out"
        )


_KEPT_IN_CACHES = ("PREFIX_TUNING", "CARTRIDGE")


def _named(config: Any) -> str:
    return str(config.peft_type.value).lower().replace("_", " ")
