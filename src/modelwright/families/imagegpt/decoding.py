"""What decoding an ImageGPT keeps and allows."""

from modelwright.configs.decoding import CacheLayout, DecodingRules
from modelwright.families.imagegpt.config import ImageGPTConfig


def cache_layout(config: ImageGPTConfig) -> CacheLayout:
    """Keys and values by head."""
    return CacheLayout(config.n_layer, config.n_head, config.head_dim, config.head_dim)


def decoding_rules(config: ImageGPTConfig) -> DecodingRules:
    """The table of positions has none for the last token, and needs none."""
    return DecodingRules(context=config.n_positions + 1, upcasts=config.reorder_and_upcast_attn)
