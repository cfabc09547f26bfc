"""modelwright, from a config to a running model: the public names, each imported from its room at first use.

Nothing heavy (torch, transformers) is imported before a name is used. The first use of a model class also registers
``deepseek_vl_v2`` with transformers' Auto classes. ``__init__.pyi`` tells type checkers the same table.
"""

from importlib import import_module

__version__ = "0.1.0"

_ROOM_OF = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "RequestError": "errors",
    "DeepseekV2Config": "configs",
    "DeepseekVLV2Config": "configs",
    "ImageGPTConfig": "configs",
    "LlamaConfig": "configs",
    "MlpProjectorConfig": "configs",
    "MoEConfig": "configs",
    "ParallelConfig": "configs",
    "VisionEncoderConfig": "configs",
    "DeepseekV2ForCausalLM": "models",
    "DeepseekV2ForSequenceClassification": "models",
    "DeepseekV2Model": "models",
    "DeepseekVLV2ForCausalLM": "models",
    "ImageGPTForCausalImageModeling": "models",
    "ImageGPTForImageClassification": "models",
    "ImageGPTModel": "models",
    "LlamaForCausalLM": "models",
    "LlamaForSequenceClassification": "models",
    "LlamaModel": "models",
    "DeepseekVLV2Processor": "processing",
    "Grounding": "processing",
    "draw_groundings": "processing",
    "parse_grounding": "processing",
    "AsyncEngine": "engine.async_engine",
    "Engine": "engine.engine",
    "EngineConfig": "engine.engine_config",
    "Guide": "engine.params",
    "SamplingParams": "engine.params",
    "load": "checkpoints",
    "quantize_model": "models.quantized",
    "register": "models.registry",
}

__all__ = [*_ROOM_OF, "__version__", "zoo"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import ``name`` from its room and keep it here, so that this function runs once a name (PEP 562)."""
    if name == "zoo":
        return import_module("modelwright.zoo")  # which also makes it an attribute of this package
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'modelwright' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    value = getattr(import_module(f"modelwright.{_ROOM_OF[name]}"), name)
    if _ROOM_OF[name] == "models":
        import_module("modelwright.models.registry").register()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
