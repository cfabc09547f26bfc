"""The pools of pages that a model's layers need, and how many pages there is room for."""

import torch

from modelwright.attention import PagePool
from modelwright.configs.decoding import CacheLayout
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.machine_memory import free_memory, memory_limit
from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError

_SHARE_OF_FREE_MEMORY = 4


def token_bytes(layout: CacheLayout, dtype: torch.dtype) -> int:
    """What all layers keep of a token; int8 has a scale of fp32 beside each vector."""
    scales = 2 * torch.float32.itemsize if dtype == torch.int8 else 0
    return layout.numbers * dtype.itemsize + layout.vectors * scales


def empty_pools(
    layout: CacheLayout, pages: int, page_size: int, dtype: torch.dtype, device: torch.device, pinned: bool = False
) -> list[PagePool]:
    """An empty pool for each layer; ``torch.int8`` keeps scales beside the numbers."""
    if layout.heads is None:
        sizes = (pages, page_size, layout.values, layout.keys)
        return [PagePool.latent(*sizes, dtype, device, pinned) for _ in range(layout.layers)]
    sizes = (pages, page_size, layout.heads, layout.keys, layout.values)
    return [PagePool.grouped(*sizes, dtype, device, pinned) for _ in range(layout.layers)]


def make_pools(served: ServedModel, settings: EngineConfig, pages: int) -> list[PagePool]:
    """The pools of `pages` for a model.

    Raises:
        ConfigError: they are larger than the memory of the device.
    """
    dtype = _stored_in(served, settings)
    _check_room("num_pages", pages, served, settings, served.device)
    return empty_pools(served.cache, pages, settings.page_size, dtype, served.device)


def make_host_pools(served: ServedModel, settings: EngineConfig) -> list[PagePool]:
    """The pools of `host_pages` in host memory, pinned for a GPU; none if nothing is to be kept there."""
    if not settings.host_pages:
        return []
    dtype, pinned = _stored_in(served, settings), served.device.type == "cuda"
    _check_room("host_pages", settings.host_pages, served, settings, torch.device("cpu"))
    return empty_pools(served.cache, settings.host_pages, settings.page_size, dtype, torch.device("cpu"), pinned)


def count_pages(served: ServedModel, settings: EngineConfig, context: int) -> int:
    """As many as asked for; else for `max_batch` sequences of `context` tokens, or what there is room for."""
    if settings.num_pages is not None:
        return settings.num_pages
    bytes_each = token_bytes(served.cache, _stored_in(served, settings))
    sharers = served.ranks if served.device.type == "cpu" else 1  # ranks on GPUs have memory of their own
    return default_pages(settings.max_batch * context, settings.page_size, bytes_each, served.device, sharers)


def default_pages(wanted_tokens: int, page_size: int, token_bytes: int, device: torch.device, sharers: int = 1) -> int:
    """Pages for `wanted_tokens`, or for what fits into a quarter of the free memory of `device`; at least one.

    `sharers` are as many engines in that memory, each of which takes its part of the quarter.
    """
    room = _free_memory(device) // (_SHARE_OF_FREE_MEMORY * sharers)
    return max(1, min(-(-wanted_tokens // page_size), room // (page_size * token_bytes)))


def _check_room(name: str, pages: int, served: ServedModel, settings: EngineConfig, device: torch.device) -> None:
    """A ConfigError where so many pages are larger than all memory of `device`; what else lies there is not known."""
    needed = pages * settings.page_size * token_bytes(served.cache, _stored_in(served, settings))
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_limit()
    if there is not None and needed > there:
        raise ConfigError(
            f"{name} ({pages}) of page_size ({settings.page_size}) take {needed / 2**30:.1f} GiB, and the memory of "
            f"{device} must hold them ({there / 2**30:.1f} GiB)",
            field=name,
        )


def _stored_in(served: ServedModel, settings: EngineConfig) -> torch.dtype:
    return torch.int8 if settings.kv_dtype == "int8" else served.dtype


def _free_memory(device: torch.device) -> int:
    """Bytes, of the device or of the host."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
