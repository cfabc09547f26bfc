"""transformers' ``generate()``, whose cache goes by either of its names on every release; the rest is as it was."""

from dataclasses import dataclass
from typing import Any

from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin
from transformers.utils.generic import ModelOutput

from modelwright.hf.cache_names import CACHE_NAME, EitherCacheName, with_cache_as


@dataclass
class GeneratedOutput(EitherCacheName, GenerateDecoderOnlyOutput):
    """What ``generate()`` returns with ``return_dict_in_generate``."""


@dataclass
class GeneratedBeamsOutput(EitherCacheName, GenerateBeamDecoderOnlyOutput):
    """The same of a search with beams."""


_READ_BY_EITHER_NAME: dict[type, type[ModelOutput]] = {
    GenerateDecoderOnlyOutput: GeneratedOutput,
    GenerateBeamDecoderOnlyOutput: GeneratedBeamsOutput,
}


class EitherNameGenerationMixin(GenerationMixin):
    """``GenerationMixin`` for models whose passes take ``cache``, see :mod:`modelwright.hf.cache_names`."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As transformers'; an earlier cache may be given as ``cache`` or as ``past_key_values``."""
        found = super().generate(*args, **with_cache_as(CACHE_NAME, kwargs))  # pyright: ignore[reportAttributeAccessIssue]
        readable = _READ_BY_EITHER_NAME.get(type(found))
        return found if readable is None else readable(**found)
