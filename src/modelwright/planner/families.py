"""`count`: from any family's config to its counts."""

from collections.abc import Callable
from typing import Any

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.plan import count_deepseek_v2
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.plan import count_deepseek_vl2
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.plan import count_imagegpt
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.plan import count_llama
from modelwright.planner.counts import Counts

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
