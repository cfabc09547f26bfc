"""Layers cut down to some outputs or inputs, in place: plain, typed, transposed, quantized; which is said elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelwright.errors import ConfigError
from modelwright.layers.linear import CastLinear
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.weight_only import RUN
from modelwright.parallel.mesh import Mesh


def inputs_of(layer: Any) -> int:
    """The width that a layer takes."""
    return layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.in_features


def keep_outputs(layer: Any, kept: Tensor) -> None:
    """Let a layer compute its outputs `kept` ``[n]`` alone, in their order.

    Raises:
        ConfigError: it is more than a layer of ours: adapted, or quantized by another library.
    """
    _refuse_others(layer)
    kept = kept.to(layer.weight.device)
    if isinstance(layer, QuantizedLinear):
        change_buffers(layer, "weight", lambda part: part[kept])
    elif isinstance(layer, Conv1D):
        layer.weight, layer.nf = _fixed(layer.weight.index_select(1, kept)), len(kept)
    else:
        layer.weight, layer.out_features = _fixed(layer.weight.index_select(0, kept)), len(kept)
    if layer.bias is not None:
        layer.bias = _fixed(layer.bias.index_select(0, kept))
    if isinstance(layer, CastLinear):
        layer.slices = 1  # slices of outputs only stand side by side


def keep_inputs(layer: Any, kept: range, mesh: Mesh) -> None:
    """Let a layer take its inputs `kept` alone; the ranks' results add up to the whole layer's, with rank 0's bias.

    Raises:
        ConfigError: as `keep_outputs`; or its weight is stored so that it cannot be cut there.
    """
    _refuse_others(layer)
    if isinstance(layer, QuantizedLinear):
        keep_stored_inputs(layer, "weight", kept)
    else:
        places = torch.arange(kept.start, kept.stop, device=layer.weight.device)
        layer.weight = _fixed(layer.weight.index_select(0 if isinstance(layer, Conv1D) else 1, places))
    if isinstance(layer, nn.Linear):
        layer.in_features = len(kept)
    if isinstance(layer, CastLinear):
        layer.slices = max(1, layer.slices // mesh.size)
    if layer.bias is not None and not mesh.leads:
        layer.bias = _fixed(torch.zeros_like(layer.bias))


def keep_stored_inputs(module: QuantizedLinear | QuantizedExperts, name: str, kept: range) -> None:
    """Of the weight ``[..., out, in]`` that `module` stores as `name`, keep the inputs `kept`.

    Raises:
        ConfigError: inputs are rounded by whole rows, or int4 steps of other inputs lie in the same bytes.
    """
    if module.dynamic:
        raise ConfigError(
            'quant_method "int8_dynamic" rounds whole rows of inputs, of which several ranks see parts: it needs 1 '
            'rank, where "int8_weight_only" and "int4_weight_only" do not'
        )
    steps, scales = module.get_buffer(name), module.get_buffer(f"{name}_scale")
    if steps.dtype == torch.int8:
        setattr(module, name, _columns(steps, kept, steps.shape[-1]))  # a row's scale is that of its parts
        return
    inputs = 2 * steps.shape[-1]  # int4, two to a byte
    together = max(inputs // scales.shape[-1], RUN)
    if kept.start % together or kept.stop % together:
        raise ConfigError(
            f"a rank's part of a layer's inputs must be whole runs of {together}, whose int4 steps lie together; got "
            f"{kept.start} to {kept.stop} of {inputs}"
        )
    change_buffers(module, name, lambda part: _columns(part, kept, inputs))


def change_buffers(module: nn.Module, name: str, cut: Callable[[Tensor], Tensor]) -> None:
    """Cut the steps, scales and offsets that `module` stores as `name`."""
    for own, buffer in list(module.named_buffers(recurse=False)):
        if own in (name, f"{name}_scale", f"{name}_offset"):
            setattr(module, own, cut(buffer))


@dataclass(frozen=True)
class SumOfRanks:
    """A forward hook: the ranks add up what a module returns on each, a tensor or a tuple that begins with one."""

    mesh: Mesh

    def __call__(self, module: nn.Module, arguments: Any, result: Any) -> Any:
        if isinstance(result, tuple):
            return self.mesh.sum(result[0]), *result[1:]
        return self.mesh.sum(result)


def sum_results(module: nn.Module, mesh: Mesh) -> None:
    """Let the ranks add up what `module` returns on each."""
    module.register_forward_hook(SumOfRanks(mesh))


def is_sliced(model: nn.Module) -> bool:
    """Whether `model` is one rank's part, which computes only together with the others'."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return any(isinstance(hook, SumOfRanks) for hook in hooks)


def _refuse_others(layer: Any) -> None:
    ours = isinstance(layer, QuantizedLinear)
    if ours or (isinstance(layer, nn.Linear | Conv1D) and type(layer.weight) is nn.Parameter):
        return
    kind = type(layer.weight).__name__ if isinstance(layer, nn.Linear | Conv1D) else type(layer).__name__
    raise ConfigError(f"several ranks share plain layers and those that modelwright quantized, and this is a {kind}")


def _columns(part: Tensor, kept: range, inputs: int) -> Tensor:
    """Of steps, scales or offsets ``[..., columns]``, those of the inputs `kept` out of `inputs`."""
    columns = part.shape[-1]
    return part[..., kept.start * columns // inputs : kept.stop * columns // inputs].clone(
        memory_format=torch.contiguous_format
    )


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)
