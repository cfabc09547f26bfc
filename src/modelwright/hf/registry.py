"""Which class serves which checkpoint, and the one call that tells transformers' Auto classes about ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)

from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.hf.pretrained import ModelwrightPreTrainedModel

ARCHITECTURES: dict[str, type[ModelwrightPreTrainedModel]] = {
    "DeepseekV2Model": DeepseekV2Model,
    "DeepseekV2ForCausalLM": DeepseekV2ForCausalLM,
    "DeepseekV2ForSequenceClassification": DeepseekV2ForSequenceClassification,
    "DeepseekVLV2ForCausalLM": DeepseekVLV2ForCausalLM,
    "ImageGPTModel": ImageGPTModel,
    "ImageGPTForCausalImageModeling": ImageGPTForCausalImageModeling,
    "ImageGPTForImageClassification": ImageGPTForImageClassification,
    "LlamaModel": LlamaModel,
    "LlamaForCausalLM": LlamaForCausalLM,
    "LlamaForSequenceClassification": LlamaForSequenceClassification,
    "MistralModel": LlamaModel,  # a Llama where no window slides, which its config checks
    "MistralForCausalLM": LlamaForCausalLM,
    "MistralForSequenceClassification": LlamaForSequenceClassification,
}
MODEL_TYPES: dict[str, type[ModelwrightPreTrainedModel]] = {
    "deepseek_v2": DeepseekV2ForCausalLM,
    "deepseek_vl_v2": DeepseekVLV2ForCausalLM,
    "imagegpt": ImageGPTForCausalImageModeling,
    "llama": LlamaForCausalLM,
    "mistral": LlamaForCausalLM,
}


def _tokenizer(folder: Path, config: Any) -> Any:
    """``tokenizer.json`` as it is: the Llama class that official files name would bring a pre-tokenizer of its own."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _vl2_processor(folder: Path, config: DeepseekVLV2Config) -> Any:
    """The processor, told what official files say in ``config.json`` only: how tiles become rows."""
    return DeepseekVLV2Processor.from_pretrained(
        folder, tile_tag=config.tile_tag, global_view_pos=config.global_view_pos
    )


def _image_processor(folder: Path, config: ImageGPTConfig) -> Any:
    """The image processor, whose palette must have a colour for each token that the model knows."""
    processor = ImageGPTImageProcessor.from_pretrained(folder)
    colours = None if processor.clusters is None else len(processor.clusters)
    if colours not in (None, config.start_token_id):
        raise CheckpointError(
            f"the palette in {folder} has {colours} colours and must have vocab_size - 1 ({config.start_token_id})"
        )
    return processor


PROCESSORS: dict[str, Callable[[Path, Any], Any]] = {
    "deepseek_v2": _tokenizer,
    "deepseek_vl_v2": _vl2_processor,
    "imagegpt": _image_processor,
    "llama": _tokenizer,
    "mistral": _tokenizer,
}
"""What reads a family's processor from a checkpoint folder, by ``model_type``.

For text alone that is its tokenizer, for pixels its image processor.
"""


def model_class(config: dict[str, Any]) -> type[ModelwrightPreTrainedModel]:
    """The class for the contents of a ``config.json``: by ``architectures``, then by ``model_type``.

    Raises:
        ConfigError: neither is one of ours; the message lists what is.
    """
    named, kind = config.get("architectures") or [], config.get("model_type")
    if isinstance(named, str) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"architectures must be a list of names, not {named!r}")
    for name in named:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not named and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    said = f"architectures {named} (model_type {kind!r})" if named else f"model_type {kind!r}"
    ours = ARCHITECTURES if named else MODEL_TYPES
    raise ConfigError(f"{said} is not served; we have {', '.join(ours)}")


def register() -> None:
    """Tell transformers' Auto classes about ``deepseek_vl_v2``, which it lacks; a version that has it is left alone."""
    name = DeepseekVLV2Config.model_type
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] is not DeepseekVLV2Config:
        return
    AutoConfig.register(name, DeepseekVLV2Config, exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(DeepseekVLV2Config, DeepseekVLV2ForCausalLM, exist_ok=True)
    AutoProcessor.register(DeepseekVLV2Config, DeepseekVLV2Processor, exist_ok=True)
