"""modelwright, from a config to a running model: the public names, each imported from its room at first use.

Nothing heavy (torch, transformers) is imported before a name is used. The first use of a model class also registers
``deepseek_vl_v2`` and our configs with transformers' Auto classes. ``__init__.pyi`` tells type checkers the same table.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOM_OF = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "RequestError": "errors",
    "DeepseekV2Config": "families.deepseek_v2.config",
    "DeepseekVLV2Config": "families.deepseek_vl2.config",
    "ImageGPTConfig": "families.imagegpt.config",
    "LlamaConfig": "families.llama.config",
    "MlpProjectorConfig": "families.deepseek_vl2.config",
    "MoEConfig": "configs",
    "ParallelConfig": "configs",
    "VisionEncoderConfig": "families.deepseek_vl2.config",
    "DeepseekV2ForCausalLM": "families.deepseek_v2.model",
    "DeepseekV2ForSequenceClassification": "families.deepseek_v2.model",
    "DeepseekV2Model": "families.deepseek_v2.model",
    "DeepseekVLV2ForCausalLM": "families.deepseek_vl2.model",
    "ImageGPTForCausalImageModeling": "families.imagegpt.model",
    "ImageGPTForImageClassification": "families.imagegpt.model",
    "ImageGPTModel": "families.imagegpt.model",
    "LlamaForCausalLM": "families.llama.model",
    "LlamaForSequenceClassification": "families.llama.model",
    "LlamaModel": "families.llama.model",
    "DeepseekVLV2Processor": "families.deepseek_vl2.processor",
    "Grounding": "processing",
    "draw_groundings": "processing",
    "fit_clusters": "processing.palette",
    "parse_grounding": "processing",
    "AsyncEngine": "engine.async_engine",
    "Engine": "engine.engine",
    "EngineConfig": "engine.engine_config",
    "Guide": "engine.params",
    "SamplingParams": "engine.params",
    "load": "serving.load",
    "quantize_model": "checkpoints.quantized_model",
    "register": "hf.registry",
}

__all__ = [*_ROOM_OF, "__version__", "zoo"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import ``name`` from its room and keep it here, so that this function runs once a name (PEP 562)."""
    if name == "zoo":
        return import_module("modelwright.zoo")  # which also makes it an attribute of this package
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'modelwright' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    value = getattr(import_module(f"modelwright.{_ROOM_OF[name]}"), name)
    if _ROOM_OF[name].endswith(".model"):
        import_module("modelwright.hf.registry").register()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
