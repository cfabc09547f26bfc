"""One file per family, the base they share, and the registry."""

from modelwright.models.deepseek_v2 import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from modelwright.models.deepseek_vl2 import DeepseekVLV2ForCausalLM
from modelwright.models.imagegpt import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.models.llama import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

__all__ = [
    "DeepseekV2ForCausalLM",
    "DeepseekV2ForSequenceClassification",
    "DeepseekV2Model",
    "DeepseekVLV2ForCausalLM",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTModel",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "LlamaModel",
]
