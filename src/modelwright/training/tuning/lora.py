"""LoRA for a model: which weights get a pair beside them, its first numbers, and how it is folded in.

Leaves out the modules that compute with pairs (``layers/lora.py``) and files (``adapter.py``).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.checkpoints.lora import LoraPair, tied_weights, transposed_weights, weights_of
from modelwright.configs.run import LoraPart
from modelwright.errors import ConfigError
from modelwright.layers.lora import Adapted, LowRank, lora_of, put_beside, replace_module
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.training.seeds import seed_of
from modelwright.training.tuning.parts import chosen, split_by_part

HOUSE = frozenset(
    {
        *("embedding", "attention", "dense", "experts", "shared", "gate", "norms", "head"),
        *("vision", "projector", "marks"),
    }
)
"""The parts that families have; what one of them lacks may be named among targets, whose defaults serve all."""


def targets(model: Any, part: LoraPart, frozen: Sequence[str] = ()) -> tuple[str, ...]:
    """The weights that a LoRA part of a run's config means, without those that are ``frozen``.

    Raises:
        ConfigError: it names what the model has not, a head that is the embedding, or nothing.
    """
    weights = weights_of(model)
    parts = split_by_part(model, weights)
    has = _all_by_part(model)

    def pick(field: str, asked: Sequence[str]) -> set[str]:
        return chosen(field, [each for each in asked if each in parts or each not in HOUSE], parts)

    for each in part.targets:
        if each in has and each not in parts:
            raise ConfigError(f"tune.lora.targets names {each!r}, and no layer of that part has a matrix to adapt")
    found = pick("tune.lora.targets", part.targets) - pick("tune.lora.exclude", part.exclude) - kept(model, frozen)
    if not found:
        raise ConfigError(
            f"tune.lora leaves nothing to adapt: targets {list(part.targets)} without {list(part.exclude)}; "
            f"parts with matrices are {', '.join(parts)}"
        )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name in found:
        if head is not None and model.get_submodule(name.rpartition(".")[0]) is head and _is_tied(model, head):
            raise ConfigError(f"tune.lora targets {name}, which is tied to the embedding: it has no matrix of its own")
    return tuple(name for name in weights if name in found)


def kept(model: Any, frozen: Sequence[str]) -> set[str]:
    """The weights and other parameters that a run's config keeps as they are.

    Raises:
        ConfigError: ``frozen`` names what the model has not.
    """
    return chosen("tune.freeze", frozen, _all_by_part(model))


def _all_by_part(model: Any) -> dict[str, tuple[str, ...]]:
    """Weights, also those that are stored in integers, and all other parameters."""
    names = [*weights_of(model), *(name for name, _ in model.named_parameters())]
    return split_by_part(model, dict.fromkeys(names))


def scale_of(part: LoraPart) -> float:
    """What multiplies the product of a pair of a LoRA part of a run's config."""
    return part.alpha / (math.sqrt(part.rank) if part.rslora else part.rank)


def add_lora(model: Any, part: LoraPart, seed: int = 0, frozen: Sequence[str] = ()) -> dict[str, LowRank]:
    """Put adapted layers in the place of those that ``part`` targets; returns their pairs by weight.

    A is drawn (uniformly within ``1 / sqrt(in)``, as peft does) and B is 0, so the model computes what it did. What is
    drawn for a weight depends on its name and ``seed`` alone.

    Raises:
        ConfigError: as :func:`targets`, or the model has LoRA already.
    """
    shapes = weights_of(model)
    scale, pairs = scale_of(part), {}
    for name in targets(model, part, frozen):
        *stack, out, into = shapes[name]
        a = torch.empty(*stack, part.rank, into)
        bound = 1 / math.sqrt(into)
        a.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed_of(seed, "lora", name)))
        pairs[name] = LoraPair(a, torch.zeros(*stack, out, part.rank), scale)
    return put_pairs(model, pairs, part.dropout, part.rslora)


def put_pairs(
    model: Any, pairs: Mapping[str, LoraPair], dropout: float = 0.0, rslora: bool = False
) -> dict[str, LowRank]:
    """Put adapted layers, with these pairs beside their weights, in the place of plain ones; nothing else then trains.

    ``rslora`` says how their scales were reckoned, for the adapter's config.

    Raises:
        ConfigError: the model has LoRA already.
    """
    if lora_of(model):
        raise ConfigError(f"{type(model).__name__} has LoRA already: merge it first, or take the plain model")
    model.requires_grad_(False)
    made = {}
    for name, pair in pairs.items():
        device = _device(model.get_submodule(name.rpartition(".")[0]))
        a, b = (side.to(device, torch.float32) for side in (pair.a, pair.b))
        made[name] = LowRank(a, b, pair.scale, dropout, rslora)
    put_beside(model, made)
    return lora_of(model)


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The adapted weights with their pairs folded in, by name: computed in fp32, rounded to the weight's type.

    Raises:
        ConfigError: a weight is stored in integers, or is a head's that is the embedding, too.
    """
    found, turned, tied = {}, transposed_weights(model), tied_weights(model)
    for name, pair in lora_of(model).items():
        if name in tied:
            raise ConfigError(
                f"{name} is one matrix with {', '.join(sorted(tied - {name}))}, into which its LoRA cannot be folded: "
                "untie them first (tie_word_embeddings: false)"
            )
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, QuantizedLinear | QuantizedExperts):
            raise ConfigError(
                f"{name} is stored in integers, into which no adapter can be folded: save the adapter, and give it to "
                "the model that was quantized"
            )
        weight = getattr(module, name.rpartition(".")[2]).detach()
        delta = pair.delta().to(weight.device)
        found[name] = (weight.float() + (delta.t() if name in turned else delta)).to(weight.dtype)
    return found


@torch.no_grad()
def merge(model: Any) -> Any:
    """Fold all pairs into their weights, in place, and put plain layers back; returns the model.

    Raises:
        ConfigError: a weight is stored in integers.
    """
    for name, weight in merged_weights(model).items():
        model.get_parameter(name).copy_(weight)
    for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, Adapted)]:
        replace_module(model, name, module.plain())
    return model


def _device(module: nn.Module) -> torch.device:
    return next(iter([*module.parameters(), *module.buffers()])).device


def _is_tied(model: Any, head: nn.Module) -> bool:
    return getattr(head, "weight", None) is getattr(model.get_input_embeddings(), "weight", None)


def has_integers(model: nn.Module) -> bool:
    """Whether weights of ``model`` are stored in integers."""
    return any(isinstance(module, QuantizedLinear | QuantizedExperts) for module in model.modules())
