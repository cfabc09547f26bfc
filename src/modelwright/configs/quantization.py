"""Whose a `quantization_config` is: ours, or that of another program whose stored weights nobody here reads."""

from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationMethod

_KEY = "quantization_config"
_MLX_KEY = "quantization"  # where MLX says the same once more
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files in which programs say beside a config, or instead of it, how weights are stored, and whose they are."""
QUANT_METHODS = ("int8_weight_only", "int4_weight_only", "int8_dynamic", "int8_kv", "rtn")
"""The `quant_method` of what we store, and of MindFormers' rounding to nearest."""


READ_PROGRAMS = frozenset(
    ("auto-round", "awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "mlx", "modelopt")
)
"""Programs whose stored weights are read as the numbers that they stand for (``checkpoints/foreign``)."""


def is_transformers_quantization(value: Any) -> bool:
    """Whether a `quantization_config` is transformers' own, which acts while weights load and is kept for it."""
    if value is None or not isinstance(value, Mapping):
        return value is not None
    return value.get("quant_method") in {method.value for method in QuantizationMethod}


def is_foreign(value: Any) -> bool:
    """Whether a file's `quantization_config` is none of ours: transformers' own, or of an unknown program.

    MindFormers' `rtn` is ours where it leaves out the head alone and smooths nothing.
    """
    if not isinstance(value, Mapping):
        return value is not None
    method = value.get("quant_method")
    return bool(value) and (method not in QUANT_METHODS or (method == "rtn" and _does_more(value)))


def stated(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a `rtn` section says, without the keys that say nothing: None (which YAML reads as text), or ours anyway."""
    said = {key: each for key, each in value.items() if each not in (None, "None", {}, [])}
    return {key: each for key, each in said.items() if (key, each) != ("modules_to_not_convert", ["lm_head"])}


def _does_more(value: Mapping[str, Any]) -> bool:
    extra = ("modules_to_not_convert", "outliers_suppression", "algorithm_args")
    return not stated(value).keys().isdisjoint(extra)


def foreign_quantization(config: Any) -> Any:
    """The `quantization_config` of another program in a config or in one of its parts; None where there is none.

    The config may also be the contents of a `config.json`.
    """
    values = config if isinstance(config, Mapping) else vars(config)
    parts = [values, *(value for key, value in values.items() if key.endswith("_config") and key != _KEY)]
    found = (part.get(_KEY) if isinstance(part, Mapping) else getattr(part, _KEY, None) for part in parts)
    return next((value for value in found if is_foreign(value)), None)


def forget_foreign_quantization(config: Any) -> None:
    """Let a config and its parts say no longer how another program has stored weights: what they describe is floats."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        section = getattr(part, _KEY, None)
        if is_foreign(section):
            del part.quantization_config
            if getattr(part, _MLX_KEY, None) == section:
                delattr(part, _MLX_KEY)


def program_of(value: Any) -> str:
    """Whose a `quantization_config` is: what it calls its method or, where it calls it nothing, whose keys it has."""
    method = method_of(value)
    if method != "unknown" or not isinstance(value, Mapping):
        return method
    if value.get("load_in_4bit") or value.get("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if {"bits", "group_size"} <= value.keys() else method


def method_of(value: Any) -> str:
    """What a `quantization_config`, a dict or one of transformers' objects, calls its method."""
    method = value.get("quant_method") if isinstance(value, Mapping) else getattr(value, "quant_method", value)
    return str(getattr(method, "value", method) or "unknown")
