"""`EngineConfig`, how an engine shares the machine among requests; how one request is continued is `params`."""

from dataclasses import dataclass
from typing import Any, Self

from modelwright.configs.engine import EngineSettings
from modelwright.errors import ConfigError

KV_DTYPES = ("auto", "int8")
BACKENDS_SERVED = ("", "eager")


@dataclass(frozen=True)
class EngineConfig:
    """The limits and the cache of an engine.

    Attributes:
        max_batch: how many sequences run at once.
        token_budget: how many tokens a step computes at most, unless a prompt may not be read in parts.
        max_context: how many tokens a sequence may have, drawn ones included; None for what the model was built for.
        page_size: tokens in a page of the cache.
        num_pages: pages of the cache; None for as many as `max_batch` whole contexts need, if they fit into a quarter
            of the memory that is free.
        kv_dtype: ``auto`` keeps keys and values as the model computes them, ``int8`` in a quarter or half of the room.
        chunk_prefill: whether parts of prompts share a step with decodes.
        reuse_prefixes: whether pages are found again by prompts that begin alike.
        kept_pictures: of how many pictures the rows are kept for prompts that show them again.

    Raises:
        ConfigError: a number is below 1, or an unknown `kv_dtype`.
    """

    max_batch: int = 64
    token_budget: int = 2048
    max_context: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    kv_dtype: str = "auto"
    chunk_prefill: bool = True
    reuse_prefixes: bool = True
    kept_pictures: int = 64

    def __post_init__(self) -> None:
        for name in ("max_batch", "token_budget", "max_context", "page_size", "num_pages", "kept_pictures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.token_budget < self.max_batch:
            raise ConfigError(f"token_budget ({self.token_budget}) must be at least max_batch ({self.max_batch})")
        if self.kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, got {self.kv_dtype!r}")

    @classmethod
    def from_settings(cls, settings: EngineSettings, **changes: Any) -> Self:
        """What a config's inference fields ask for (its ``engine`` view), with `changes` in their place.

        Raises:
            ConfigError: they ask for what the engine does not do: another backend, or weights to be quantized.
        """
        if settings.backend not in BACKENDS_SERVED:
            raise ConfigError(f'llm_backend must be "" or "eager" for the engine, got "{settings.backend}"')
        quantization = settings.quantization
        if quantization is not None and (quantization.weights or quantization.activations):
            raise ConfigError("quant_config: the engine quantizes keys and values only, and was asked for weights")
        asked = {
            "max_batch": settings.batch_size,
            "token_budget": max(cls.token_budget, settings.batch_size),
            "max_context": settings.seq_length,
            "page_size": settings.block_size,
            "num_pages": settings.num_blocks,
            "kv_dtype": "int8" if quantization is not None and quantization.kv_cache == "int8" else "auto",
            "chunk_prefill": settings.chunk_prefill,
        }
        return cls(**asked | changes)
