"""`count`: from any family's config to its counts."""

from collections.abc import Callable
from typing import Any

from modelwright.configs import CheckedConfig, DeepseekV2Config, DeepseekVLV2Config, ImageGPTConfig, LlamaConfig
from modelwright.errors import ConfigError
from modelwright.planner.counts import Counts
from modelwright.planner.deepseek_v2 import count_deepseek_v2
from modelwright.planner.deepseek_vl2 import count_deepseek_vl2
from modelwright.planner.imagegpt import count_imagegpt
from modelwright.planner.llama import count_llama

_FAMILIES: dict[type[CheckedConfig], Callable[[Any], Counts]] = {
    DeepseekV2Config: count_deepseek_v2,
    DeepseekVLV2Config: count_deepseek_vl2,
    LlamaConfig: count_llama,
    ImageGPTConfig: count_imagegpt,
}


def count(config: CheckedConfig) -> Counts:
    """What the model of this config counts, its language-model head included; nothing is built or read.

    Raises:
        ConfigError: the planner knows no model of this config.
    """
    for config_class, counter in _FAMILIES.items():
        if isinstance(config, config_class):
            return counter(config)
    known = ", ".join(f'"{config_class.model_type}"' for config_class in _FAMILIES)
    raise ConfigError(f'model_type must be one of {known} to be counted; got "{config.model_type}"')
