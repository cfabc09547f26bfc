"""What decoding a Llama keeps and allows."""

from modelwright.configs.decoding import CacheLayout, DecodingRules
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig


def cache_layout(config: LlamaConfig) -> CacheLayout:
    """Keys and values by key head."""
    return CacheLayout(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)


def decoding_rules(config: LlamaConfig) -> DecodingRules:
    """A sequence may have `seq_length` tokens, unless rotations stretch with it.

    ``use_flash_attention`` picks between two dense products; over pages there is one, with the same result, whose
    softmax is fp32.

    Raises:
        ConfigError: the config asks for attention that pages do not serve.
    """
    if config.use_eod_attn_mask_compression:
        raise ConfigError("use_eod_attn_mask_compression must be False for the engine: its prompts are not packed")
    if config.softmax_compute_type != "float32" and not config.use_flash_attention:
        raise ConfigError(
            f'softmax_compute_type must be "float32" for the engine, which computes it so, unless use_flash_attention '
            f'leaves the type to the kernel; got "{config.softmax_compute_type}" and use_flash_attention=False'
        )
    return DecodingRules(
        context=config.rope.reach(config.seq_length),
        trained_length=config.rope.trained_length,
        attends_to_padding=config.use_attn_mask_compression,
    )
