"""Text and pictures to arrays, and the model's words back to boxes; needs no model."""

from modelwright.processing.batching import ProcessedPrompt, pad_batch
from modelwright.processing.deepseek_vl2 import DeepseekVLV2Processor
from modelwright.processing.images import MAX_PIXELS, load_image

__all__ = ["MAX_PIXELS", "DeepseekVLV2Processor", "ProcessedPrompt", "load_image", "pad_batch"]
