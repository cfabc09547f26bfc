"""Which family is exported how."""

from typing import Any

from modelwright.errors import ConfigError
from modelwright.export.deepseek import DeepseekV2OnnxConfig, DeepseekVLV2OnnxConfig
from modelwright.export.graphs import OnnxConfig
from modelwright.export.onnx_configs import ImageGPTOnnxConfig, LlamaOnnxConfig

ONNX_CONFIGS: dict[str, type[OnnxConfig]] = {
    kind.family: kind for kind in (DeepseekV2OnnxConfig, DeepseekVLV2OnnxConfig, ImageGPTOnnxConfig, LlamaOnnxConfig)
}


def onnx_config_class(model_class: type[Any]) -> type[OnnxConfig]:
    """How models of ``model_class`` are exported.

    Raises:
        ConfigError: they are not: only models that say a next token are.
    """
    for kind in ONNX_CONFIGS.values():
        if issubclass(model_class, kind.model_class):
            return kind
    served = ", ".join(kind.model_class.__name__ for kind in ONNX_CONFIGS.values())
    raise ConfigError(f"{model_class.__name__} is not exported: a graph with a cache serves {served}")
