"""What decoding a DeepSeek-V2 keeps and allows; DeepSeek-VL2's decoder is one."""

from modelwright.configs.decoding import CacheLayout, DecodingRules
from modelwright.families.deepseek_v2.config import DeepseekV2Config


def cache_layout(config: DeepseekV2Config) -> CacheLayout:
    """Rotated key and latent with latent attention, else keys and values by head."""
    layers = config.num_hidden_layers
    if config.use_mla:
        return CacheLayout(layers, None, config.qk_rope_head_dim, config.kv_lora_rank or 0)
    return CacheLayout(layers, config.num_key_value_heads, config.head_dim, config.head_dim)


def decoding_rules(config: DeepseekV2Config) -> DecodingRules:
    """The context is `max_position_embeddings`, unless rotations stretch with the sequence."""
    return DecodingRules(
        context=config.rope.reach(config.max_position_embeddings),
        trained_length=config.rope.trained_length,
    )
