"""A built model with its matrices rounded to integers, and official tensors rounded on their way in.

Quantized are the projections of attention, feed-forwards and experts (stacks expert by expert). Left as they are:
embeddings, norms, biases, routers, what sees pictures, heads (unless asked for), and the latent's ``kv_b_proj``, whose
numbers attention multiplies with either side. Leaves out files, and how rounding is done (``ops/weight_only.py``).
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelwright.checkpoints.shards import INTEGERS, TensorHeader
from modelwright.configs.engine import QuantSettings, read_quantization, weight_quantization
from modelwright.errors import ConfigError
from modelwright.layers import Experts, Linear
from modelwright.layers.linear import CastLinear, ColumnSlicedLinear, RowSlicedLinear
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.stored import Stored
from modelwright.ops.weight_only import RUN, Int4Weight, dequantise, quantise_int4, quantise_int8

METHODS = {"int8": "int8_weight_only", "int4": "int4_weight_only", "int8-dynamic": "int8_dynamic"}
"""Short names of what a ``quant_config`` calls ``quant_method``."""
HEAD = "lm_head"
KEPT = frozenset({"vision", "projector", "kv_b_proj", "shared_expert_gate", "score", HEAD})
"""Parts of module names whose matrices stay as they are; the head may be asked for."""
MATRICES = (Linear, nn.Linear, CastLinear, ColumnSlicedLinear, RowSlicedLinear, Conv1D, Experts)
"""Layers that compute a product with their weight; a model's ``own_matrices`` are its family's, beyond these."""
SCALE, OFFSET = ".weight_scale", ".weight_offset"


def quantize_model(
    model: Any, method: str, group: int | None = None, keep_head: bool = True, symmetric: bool = False
) -> Any:
    """Round the weights of ``model``, in place; its config then says so, and saving writes the integers.

    Args:
        method: ``int8`` (a scale per output), ``int4`` (a scale and an offset per output and ``group`` inputs) or
            ``int8-dynamic`` (int8 weights, and activations rounded row by row); or the ``quant_method`` that a config
            calls it.
        group: of int4: 32 (the default), 64 or 128.
        keep_head: whether the output head stays as it is.
        symmetric: of int4: leave out the offsets.

    Returns:
        The model.

    Raises:
        ConfigError: an unknown method or group, inputs that groups do not divide, a tied head that is not kept, or a
            model that is quantized already.
    """
    earlier = weight_quantization(model.config)
    if earlier is not None:
        raise ConfigError(f"the model is quantized already, to {earlier.weights}; quantize the one it was made from")
    settings = settings_for(method, group, keep_head, symmetric, model.config)
    quantize_layers(model, settings)
    model.config.dtype = str(model.weight_dtype()).removeprefix("torch.")
    model.config.quant_config = settings.to_config()
    return model


def settings_for(method: str, group: int | None, keep_head: bool, symmetric: bool, config: Any) -> QuantSettings:
    """What :func:`quantize_model` is asked for; a type that ``config`` names for keys and values stays in force."""
    name = METHODS.get(method, method)
    if name not in METHODS.values():
        raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    details: dict[str, Any] = {"lm_head": not keep_head}
    if name == METHODS["int4"]:
        details |= {"group_size": group, "symmetric": symmetric}
    elif group is not None or symmetric:
        given = f"group ({group})" if group is not None else f"symmetric ({symmetric})"
        raise ConfigError(f"{given} is for int4, and the method is {method}, which has one scale for each output")
    settings = read_quantization({"quant_method": name} | details)
    cached = read_quantization(getattr(config, "quant_config", None))
    assert settings is not None
    return settings if cached is None else replace(settings, kv_cache=cached.kv_cache)


@torch.no_grad()
def quantize_layers(model: Any, settings: QuantSettings) -> None:
    """Replace the matrices of ``model`` in place; those that are replaced already are passed over.

    On the meta device this gives the shapes of what a checkpoint holds.

    Raises:
        ConfigError: groups that do not divide a layer's inputs, or a head that is the embedding.
    """
    if settings.head and model.config.get_text_config().tie_word_embeddings:
        raise ConfigError("lm_head (True) needs tie_word_embeddings=False: a tied head is the embedding, which is kept")
    matrices = (*MATRICES, *model.own_matrices)
    for name, module in list(model.named_modules()):
        if _kept(name, settings) or type(module) not in matrices:
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _quantized(name, module, settings))


def store(name: str, weight: Tensor, settings: QuantSettings) -> Stored:
    """``[..., out, in]`` rounded; ``name`` is for the error."""
    if settings.weights == "int8":
        return quantise_int8(weight)
    inputs = weight.shape[-1]
    if inputs % max(settings.group, RUN):
        raise ConfigError(
            f"the inputs of {name} ({inputs}) must be divisible by group_size ({settings.group}) and by {RUN}, whose "
            "int4 steps share a run of bytes"
        )
    return quantise_int4(weight, settings.group, offset=not settings.symmetric)


def relative_error(weight: Tensor, stored: Stored) -> float:
    """``|stored - weight| / |weight|`` (Frobenius norms); 0 for a weight of zeros."""
    wide = weight.float()
    off = (dequantise(stored) - wide).norm() / wide.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float(off)


def quantize_tensors(
    tensors: Iterable[tuple[str, Tensor]], plain: nn.Module, names: Iterable[str], settings: QuantSettings
) -> Iterator[tuple[str, Tensor]]:
    """Official tensors of ``plain`` as those of the same model quantized, whose official names are ``names``."""
    rounded, transposed = quantized_names(names), transposed_names(plain)
    for name, tensor in tensors:
        if name in rounded:
            yield from parts_of(name, store(name, rows_of(name, tensor, transposed), settings))
        else:
            yield name, tensor


def quantized_names(names: Iterable[str]) -> frozenset[str]:
    """Those of a quantized model's official names that have a scale."""
    return frozenset(f"{name.removesuffix(SCALE)}.weight" for name in names if name.endswith(SCALE))


def transposed_names(plain: nn.Module) -> frozenset[str]:
    """The official matrices that lie as ``[in, out]``."""
    return frozenset(f"{name}.weight" for name, module in plain.named_modules() if isinstance(module, Conv1D))


def rows_of(name: str, tensor: Tensor, transposed: Collection[str]) -> Tensor:
    """An official matrix as ``[out, in]``."""
    return tensor.t().contiguous() if name in transposed else tensor


def parts_of(name: str, stored: Stored) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the stored weight that is officially called ``name``."""
    yield name, stored.steps
    yield f"{name}_scale", stored.scales
    if isinstance(stored, Int4Weight) and stored.offsets is not None:
        yield f"{name}_offset", stored.offsets


def is_quantized(header: TensorHeader) -> bool:
    """Whether a tensor is part of a weight stored in integers."""
    return header.dtype in INTEGERS or header.name.endswith((SCALE, OFFSET))


def settle_offsets(config: Any, found: Iterable[TensorHeader]) -> bool:
    """Let the tensors of an int4 checkpoint say whether it has offsets where its config does not: older ones have none.

    Returns:
        Whether ``config`` asks for symmetric groups because of it, which it did not before.
    """
    settings = weight_quantization(config)
    if settings is None or settings.weights != "int4" or config.quant_config.get("symmetric") is not None:
        return False
    parts = [header.name for header in found if is_quantized(header)]
    if not parts or any(name.endswith(OFFSET) for name in parts):
        return False
    config.quant_config = {**config.quant_config, "symmetric": True}
    return True


def drop_offsets(model: nn.Module) -> None:
    """Let int4 layers whose numbers are still to come have none."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear | QuantizedExperts):
            for name in [name for name, _ in module.named_buffers(recurse=False) if name.endswith("_offset")]:
                setattr(module, name, None)


def _kept(name: str, settings: QuantSettings) -> bool:
    parts = name.split(".")
    return not KEPT.isdisjoint(parts) and not (settings.head and parts[-1] == HEAD)


def _quantized(name: str, module: Any, settings: QuantSettings) -> nn.Module:
    dynamic = settings.activations == "int8"
    if isinstance(module, Experts):
        made: nn.Module = QuantizedExperts(
            store(f"{name}.gate_up_proj", module.gate_up_proj, settings),
            store(f"{name}.down_proj", module.down_proj, settings),
            module.act,
            module.gated,
            module.names,
            module.dropout,
            module.compute,
            dynamic,
        )
    else:
        compute = module.compute if isinstance(module, CastLinear) else None
        stored = store(name, _rows(module), settings)
        made = QuantizedLinear(stored, module.bias, compute, dynamic)
    return made.train(module.training)


def _rows(module: Any) -> Tensor:
    """A layer's matrix as ``[out, in]``."""
    if isinstance(module, Conv1D):
        return module.weight.t().contiguous()
    return module.weight
