"""`EngineConfig`, how an engine shares the machine among requests; how one request is continued is `params`."""

from dataclasses import dataclass
from typing import Any, Self

from modelwright.configs.base import require
from modelwright.configs.engine import EngineSettings, QuantSettings
from modelwright.configs.limits import check_engine
from modelwright.configs.part import ConfigPart
from modelwright.errors import ConfigError

MANY = 2048
"""Tokens of a step that fill any machine."""
ALIASES = {"": "auto", "compile": "record"}
"""What `llm_backend` says in MindFormers' words, and the backend that it stands for."""


@dataclass(frozen=True)
class EngineConfig(ConfigPart):
    """The limits and the cache of an engine.

    Attributes:
        max_batch: how many sequences run at once.
        token_budget: how many tokens a step computes at most, unless a prompt may not be read in parts; None lets
            `step_tokens` choose, so that of several who are served none waits long for a step.
        max_context: how many tokens a sequence may have, drawn ones included; None for what the model was built for.
        page_size: tokens in a page of the cache.
        num_pages: pages of the cache; None for as many as `max_batch` whole contexts need, if they fit into a quarter
            of the memory that is free.
        host_pages: pages in host memory (pinned for a GPU) for sequences that lose theirs to others, who find there
            what they had computed; 0 lets them compute it again.
        kv_dtype: ``auto`` keeps keys and values as the model computes them, ``int8`` in a quarter or half of the room.
        chunk_prefill: whether parts of prompts share a step with decodes. The prompts of a model that rotates by a
            sequence's length (rope types ``dynamic`` and DYNAMIC_NTK) are read whole in any case.
        reuse_prefixes: whether pages are found again by prompts that begin alike.
        kept_pictures: of how many pictures the rows are kept for prompts that show them again.
        backend: ``eager`` runs each pass from Python. Decodes can be captured and replayed: ``record`` repeats the
            calls of a CPU's kernels, ``cudagraph`` those of a CUDA device. ``auto`` records where it can be done, on
            one rank of a CPU with compiled kernels, and is ``eager`` elsewhere.
        batch_invariant: whether a request's scores have the same bits whatever is computed beside it, in whatever parts
            its prompt is read, found, lost and computed again. Otherwise kernels are chosen by how many tokens a step
            has, and round differently: in bf16 and with integer weights another token may be drawn.

    Raises:
        ConfigError: a value has the wrong type, a number is below 1 (`host_pages`: 0), or a name is unknown.
    """

    max_batch: int = 64
    token_budget: int | None = MANY
    max_context: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    host_pages: int = 0
    kv_dtype: str = "auto"
    chunk_prefill: bool = True
    reuse_prefixes: bool = True
    kept_pictures: int = 64
    backend: str = "auto"
    batch_invariant: bool = False

    def check_rules(self) -> None:
        check_engine(vars(self))
        budget, batch = self.token_budget, self.max_batch
        if budget is not None and budget < batch:
            raise ConfigError(f"token_budget ({budget}) must be at least max_batch ({batch})", field="token_budget")

    def context_of(self, most: int) -> int:
        """How many tokens a sequence may have, of a model whose own context holds `most`.

        Raises:
            ConfigError: `max_context` is more.
        """
        asked = self.max_context
        if asked is not None and asked > most:
            raise ConfigError(
                f"max_context ({asked}) must be at most the model's context ({most})", field="max_context"
            )
        return asked or most

    @classmethod
    def from_settings(cls, settings: EngineSettings, **changes: Any) -> Self:
        """What a config's inference fields ask for (its ``engine`` view), with `changes` in their place.

        ``batch_size`` is `max_batch`, ``seq_length`` is `max_context`, ``block_size`` and ``num_blocks`` are the pages,
        and ``max_decode_length`` is for `SamplingParams.from_settings`. Of a ``quant_config`` the cache's type is read;
        weights are quantized where the model is built. Rows are packed and never rounded up to a
        length, so ``is_dynamic`` asks for nothing more.

        Raises:
            ConfigError: they ask for what the engine does not do: to keep no keys.
        """
        require(settings.use_past, "use_past must be True for the engine, which keeps keys in pages; got False")
        stored = settings.quantization or QuantSettings()
        asked = {
            "max_batch": settings.batch_size,
            "token_budget": max(MANY, settings.batch_size),
            "max_context": settings.seq_length,
            "page_size": settings.block_size,
            "num_pages": settings.num_blocks,
            "kv_dtype": stored.kv_cache or "auto",
            "chunk_prefill": settings.chunk_prefill,
            "backend": ALIASES.get(settings.backend, settings.backend),
        }
        return cls(**asked | changes)
