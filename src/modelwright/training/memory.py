"""What of a layer is kept for its backward pass: all, nothing (it is computed again), or a copy in host memory.

Layers have the seam themselves (:class:`CheckpointedLayer`): who wants them run otherwise gives the function that does.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from modelwright.errors import ConfigError
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.training.swap import Swap

_aten = torch.ops.aten
KERNELS: dict[str, tuple[str, ...]] = {
    "matmul": ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "mv", "convolution"),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    "topk": ("topk", "sort"),
    "norm": ("_fused_rms_norm", "native_layer_norm"),
    "activation": ("silu", "gelu", "relu", "sigmoid", "tanh"),
    "softmax": ("_softmax", "_safe_softmax", "logsumexp"),
}
"""The kinds of kernels that a run's config may name, and torch's operations that they are."""
OWN: dict[str, tuple[str, ...]] = {
    "matmul": ("product", "grouped_linear"),
    "attention": ("trained_attention", "attention_by_document"),
}
"""Operations of ours that are of these kinds: in graphs, and where products of a type are made in fp32."""
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "attention_norm": ("norm",),
    "attention": tuple(KERNELS),
    "attention.core": ("attention", "softmax"),
    "ffn_norm": ("norm",),
    "feed_forward": tuple(KERNELS),
    "feed_forward.activation": ("activation",),
    "feed_forward.product": (),
}
"""Of each operation of a layer, the kernels that run again where it does; products of two tensors always do."""
MODULES: dict[str, str] = {
    "attention_norm": "input_layernorm|ln_1|norm1",
    "attention": "self_attn|attn",
    "attention.core": "self_attn|attn",
    "ffn_norm": "post_attention_layernorm|ln_2|norm2",
    "feed_forward": "mlp|block_sparse_moe",
    "feed_forward.activation": "mlp|block_sparse_moe",
    "feed_forward.product": "mlp|block_sparse_moe",
}
"""The same for swapping: the modules of a layer, by an expression."""

SELECTIVE = ("matmul", "attention", "topk")
"""What ``selective`` keeps."""


_MOVES = "respect_saved_tensors_hooks"
_MOVED: dict[str, Any] = {_MOVES: True} if _MOVES in signature(checkpoint).parameters else {}
"""Lets the kernels that are kept of a layer be moved to the host as well, which torch before 2.15 does not."""
TOWER = "vision."
"""What names of the blocks of a tower begin with."""


def layers_of(model: nn.Module) -> dict[str, CheckpointedLayer]:
    """The layers of the stack by name, in the order of their numbers; blocks of a tower that sees pictures go on."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, CheckpointedLayer)}
    return dict(sorted(found.items(), key=lambda item: item[0].startswith(TOWER)))


def keep_less(
    model: nn.Module, recompute: Any = "none", swap: Any = None, around: Callable[..., Any] | None = None
) -> None:
    """Let the layers of ``model`` be recomputed or their activations wait in host memory, as a run's config says.

    Args:
        recompute: ``none``, ``full``, ``selective``, or a :class:`modelwright.configs.run.RecomputePart`.
        swap: a :class:`modelwright.configs.run.SwapPart`, or None.
        around: what computes each layer, recomputing included, and hands on what is kept: torch's compiler.

    Raises:
        ConfigError: a layer that the model has not, or an operation that nothing is called.
    """
    layers = layers_of(model)
    names = tuple(layers)
    ways: list[list[Callable[..., Any]]] = [[] for _ in layers]
    if recompute != "none":
        single = {} if isinstance(recompute, str) else recompute.operations
        saved = SELECTIVE if recompute == "selective" else () if isinstance(recompute, str) else recompute.save
        for number in _whole("recompute", None if isinstance(recompute, str) else recompute.layers, single, names):
            ways[number].append(_recomputed(saved))
        for number, operations in _by_layer("recompute", single, names).items():
            again = {kernel for operation in operations for kernel in RECOMPUTED[operation]}
            ways[number].append(_recomputed(tuple(KERNELS.keys() - again)))
    if around is not None:
        for how in ways:
            how.append(around)
    if swap is not None:
        moves = Swap(swap.prefetch)
        for number in _whole("swap", swap.layers, swap.operations, names):
            ways[number].append(moves.layer(number))
        for number, operations in _by_layer("swap", swap.operations, names).items():
            for module in _named(layers[names[number]], {MODULES[operation] for operation in operations}):
                moves.module(number, module)
    for layer, how in zip(layers.values(), ways, strict=True):
        layer.gradient_checkpointing = bool(how)
        layer._gradient_checkpointing_func = partial(_run, tuple(how))


def _run(ways: Sequence[Callable[..., Any]], function: Callable[..., Any], *inputs: Any) -> Any:
    for way in ways:
        function = partial(way, function)
    return function(*inputs)


def _whole(field: str, chosen: Sequence[int] | None, single: Mapping[str, Any], layers: Sequence[str]) -> Sequence[int]:
    """The numbers of the layers that are treated whole: all, unless some or single operations are named."""
    if chosen is None:
        return () if single else range(len(layers))
    _check_numbers(field, chosen, layers)
    return chosen


def _by_layer(field: str, single: Mapping[str, Sequence[int]], layers: Sequence[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for operation, numbers in single.items():
        _check_numbers(field, numbers, layers)
        for number in numbers:
            found.setdefault(number, []).append(operation)
    return found


def _check_numbers(field: str, chosen: Sequence[int], layers: Sequence[str]) -> None:
    beyond = next((number for number in chosen if not 0 <= number < len(layers)), None)
    if beyond is None:
        return
    tower = next((number for number, name in enumerate(layers) if name.startswith(TOWER)), None)
    more = "" if tower is None else f", those from {tower} on blocks of its tower"
    raise ConfigError(f"{field} names layer {beyond}, and the model has layers 0 to {len(layers) - 1}{more}")


def _recomputed(saved: Sequence[str]) -> Callable[..., Any]:
    """A layer that is computed again but for the kernels that are ``saved``."""
    if not saved:
        return partial(_checkpointed, None)
    kept = frozenset().union(*(_kernels(name) for name in saved))
    return partial(_checkpointed, _contexts(lambda operation: operation in kept))


def _kernels(name: str) -> frozenset[Any]:
    """Every overload of the operations that a name means, as far as they are there."""
    packets = [getattr(_aten, operation, None) for operation in KERNELS[name]]
    packets += [getattr(torch.ops.modelwright, operation, None) for operation in OWN.get(name, ())]
    return frozenset(getattr(packet, each) for packet in packets if packet is not None for each in packet.overloads())


def _contexts(is_kept: Callable[[Any], bool]) -> Callable[[], Any]:
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if is_kept(operation) else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


def _checkpointed(contexts: Callable[[], Any] | None, function: Callable[..., Any], *inputs: Any) -> Any:
    if contexts is None:
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts, **_MOVED)


def _named(layer: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """The modules of a layer whose names are as patterns say."""
    return [
        module for name, module in layer.named_children() if any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
