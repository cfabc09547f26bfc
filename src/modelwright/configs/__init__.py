"""What a model is, as checked configurations; no tensor code lives in this room."""

from modelwright.configs.base import CheckedConfig
from modelwright.configs.deepseek_v2 import DeepseekV2Config
from modelwright.configs.deepseek_vl2 import DeepseekVLV2Config, MlpProjectorConfig, VisionEncoderConfig
from modelwright.configs.imagegpt import ImageGPTConfig
from modelwright.configs.llama import LlamaConfig
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig
from modelwright.configs.read import CONFIGS, read_config
from modelwright.configs.rope import RopeScaling, RopeSettings

__all__ = [
    "CONFIGS",
    "CheckedConfig",
    "DeepseekV2Config",
    "DeepseekVLV2Config",
    "ImageGPTConfig",
    "LlamaConfig",
    "MlpProjectorConfig",
    "MoEConfig",
    "ParallelConfig",
    "RopeScaling",
    "RopeSettings",
    "VisionEncoderConfig",
    "read_config",
]
