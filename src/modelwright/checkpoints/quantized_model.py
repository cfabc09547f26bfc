"""A built model with its matrices rounded to integers, and official tensors rounded on their way in.

Leaves out which matrices those are (``rounded_layers.py``), files, and how rounding is done (``ops/weight_only.py``).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelwright.checkpoints.calibrate import LayerProgress, calibrate_layers
from modelwright.checkpoints.rounded_layers import quantize_layers, store
from modelwright.checkpoints.shards import INTEGERS, TensorHeader
from modelwright.configs.engine import QuantSettings, read_quantization, weight_quantization
from modelwright.errors import ConfigError
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.stored import Stored
from modelwright.ops.weight_only import Int4Weight, dequantise

METHODS = {"int8": "int8_weight_only", "int4": "int4_weight_only", "int8-dynamic": "int8_dynamic"}
"""Short names of what a ``quant_config`` calls ``quant_method``."""
SCALE, OFFSET = ".weight_scale", ".weight_offset"


def quantize_model(
    model: Any,
    method: str,
    group: int | None = None,
    keep_head: bool = True,
    symmetric: bool = False,
    calibration: Sequence[Mapping[str, Tensor]] | None = None,
    progress: LayerProgress | None = None,
) -> Any:
    """Round the weights of ``model``, in place; its config then says so, and saving writes the integers.

    Args:
        method: ``int8`` (a scale per output), ``int4`` (a scale and an offset per output and ``group`` inputs) or
            ``int8-dynamic`` (int8 weights, and activations rounded row by row); or the ``quant_method`` that a config
            calls it.
        group: of int4: 32 (the default), 64 or 128.
        keep_head: whether the output head stays as it is.
        symmetric: of int4: leave out the offsets.
        calibration: of int4: keyword arguments of ``model``, such as ``input_ids`` ``[batch, tokens]``, for each of
            some passes without padding. Matrices are then rounded so that their products stay near on what the layers
            meet in them (:func:`modelwright.checkpoints.calibrate.calibrate_layers`).
        progress: called after each layer of a calibration with how many are done and how many there are.

    Returns:
        The model.

    Raises:
        ConfigError: an unknown method or group, inputs that groups do not divide, a tied head that is not kept, or a
            model that is quantized already or of which a part is not in memory.
        RequestError: a calibration of too few tokens, or one that makes numbers that are not finite.
    """
    earlier = weight_quantization(model.config)
    if earlier is not None:
        raise ConfigError(f"the model is quantized already, to {earlier.weights}; quantize the one it was made from")
    settings = settings_for(method, group, keep_head, symmetric, model.config)
    absent = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
    if absent is not None:
        raise ConfigError(
            f"{absent} is on the meta device, as what device_map moves to disk is; quantize a model that is in memory, "
            "or its folder with modelwright quantize, which holds one shard of it at a time"
        )
    if calibration is None:
        quantize_layers(model, settings)
    elif settings.weights != "int4":
        raise ConfigError(f"calibration is for int4, and the method is {method}, which loses next to nothing without")
    else:
        calibrate_layers(model, settings, calibration, progress)
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
    """Whether a tensor is part of a weight stored in integers; masks of bytes, as older ImageGPTs hold, are none."""
    steps = header.dtype in INTEGERS and header.name.endswith("weight")
    return steps or header.name.endswith((SCALE, OFFSET))


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
