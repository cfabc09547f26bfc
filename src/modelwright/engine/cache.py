"""The pools of pages a model's layers need, told from its config, and how many pages there is room for."""

import os
from dataclasses import dataclass

import torch

from modelwright.attention import PagePool
from modelwright.configs import CheckedConfig, DeepseekV2Config, ImageGPTConfig, LlamaConfig
from modelwright.errors import ConfigError

_SHARE_OF_FREE_MEMORY = 4


@dataclass(frozen=True)
class CacheLayout:
    """What one layer keeps of a token.

    With `heads` None that is one row of `keys` rotated numbers and one latent of `values`; otherwise so many of each.
    """

    layers: int
    heads: int | None
    keys: int
    values: int

    @property
    def numbers(self) -> int:
        """Numbers that all layers keep of a token."""
        return self.layers * (self.heads or 1) * (self.keys + self.values)

    def pools(self, pages: int, page_size: int, dtype: torch.dtype, device: torch.device) -> list[PagePool]:
        """An empty pool for each layer; ``torch.int8`` keeps scales beside the numbers."""
        if self.heads is None:
            sizes = (pages, page_size, self.values, self.keys)
            return [PagePool.latent(*sizes, dtype, device) for _ in range(self.layers)]
        sizes = (pages, page_size, self.heads, self.keys, self.values)
        return [PagePool.grouped(*sizes, dtype, device) for _ in range(self.layers)]


def cache_layout(config: CheckedConfig) -> CacheLayout:
    """The layout for a decoder of `config`.

    Raises:
        ConfigError: the config is that of no decoder we have.
    """
    if isinstance(config, DeepseekV2Config):
        layers = config.num_hidden_layers
        if config.use_mla:
            return CacheLayout(layers, None, config.qk_rope_head_dim, config.kv_lora_rank or 0)
        return CacheLayout(layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    if isinstance(config, LlamaConfig):
        return CacheLayout(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    if isinstance(config, ImageGPTConfig):
        return CacheLayout(config.n_layer, config.n_head, config.head_dim, config.head_dim)
    raise ConfigError(f"the engine serves decoders, and {type(config).__name__} is the config of none")


def default_pages(wanted_tokens: int, page_size: int, token_bytes: int, device: torch.device) -> int:
    """Pages for `wanted_tokens`, or for what fits into a quarter of the free memory of `device`; at least one."""
    room = _free_memory(device) // _SHARE_OF_FREE_MEMORY
    return max(1, min(-(-wanted_tokens // page_size), room // (page_size * token_bytes)))


def _free_memory(device: torch.device) -> int:
    """Bytes; on systems that do not say, half of what is installed."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * page
    return os.sysconf("SC_PHYS_PAGES") * page // 2
